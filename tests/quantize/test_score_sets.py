"""Scoring a checkpoint on a benchmark set: figures, ablation, pictures, and bad input in one line."""

import json

import numpy as np
import pytest
import torch
from f2i_quantize.scoring.score_sets import LOOKS, main
from PIL import Image
from skimage import data as photos
from transformers import Dinov2Config, Dinov2Model


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Pair")
    (folder / "HR").mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[100:292, 100:292]).save(folder / "HR" / f"{name}.png")
    return folder


@pytest.mark.parametrize("name", ["nano", "pico"])
def test_the_bundled_models_beat_bicubic_in_every_figure(name, benchmark, tmp_path):
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=70, patch_size=14)).save_pretrained(
        tmp_path / "dino"
    )
    assert main([name, "--set", str(benchmark), "--dinov2", str(tmp_path / "dino"), "--json", str(tmp_path / "s.json")]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["sets"][benchmark.name]
    model, base = rows[name], rows["bicubic"]
    assert model["psnr_y"] > base["psnr_y"] + 1
    assert all(model[key] > base[key] for key in ("ssim_y", "ms_ssim", "haarpsi", "lr_psnr"))
    assert model["gmsd"] < base["gmsd"] and 0 < model["dinov2_distance"] < base["dinov2_distance"]


def test_pictures_show_both_methods_at_200_percent(tmp_path, capsys):
    assert main(["tiny", "--pictures", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(LOOKS)
    for kind, _, _ in LOOKS:
        picture = np.asarray(Image.open(tmp_path / f"{kind}.png"))
        assert picture.shape == (512, 1024, 3)
        assert not np.array_equal(picture[:, :512], picture[:, 512:])


def test_ablation_takes_the_context_away(benchmark, tmp_path):
    assert main(["tiny", "--set", str(benchmark), "--ablation", "--json", str(tmp_path / "s.json")]) == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert set(report["ablation"][benchmark.name]) == {"as trained", "null context", "patches only, no CLS", "tokens averaged 2 x 2"}
    assert report["sets"][benchmark.name]["tiny"]["dinov2_distance"] is None


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main(["tiny", "--set", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
