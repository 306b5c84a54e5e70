"""Group norms made constants: the least-squares fit, the fine-tune to what the model gave, and what is folded away at export."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from f2i_export.lowering import load_converter
from f2i_quantize.models import checkpoint
from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.models.norms import ChannelAffine
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.rewrites.capture import relative_l2, rewrite
from f2i_quantize.train.distill import distill
from f2i_quantize.train.distill_options import DistillOptions
from f2i_quantize.train.freeze_norms import freeze_norms
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.targets import TARGETS
from PIL import Image
from skimage import data as photos


def tiles(count=6, seed=0):
    return [(torch.from_numpy(tile), None) for _, tile in sample_tiles(32, count, seed=seed)]


@pytest.fixture(scope="module")
def tiny():
    """``tiny`` with random weights in its last layer too, so that the UNet does something."""
    model = checkpoint.load("tiny")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.05)
    return model


def test_constants_are_the_least_squares_fit_of_what_the_norm_gave(tiny):
    seen = []
    norm = tiny.unet.down_blocks[1].resnets[0].norm2
    hook = norm.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output)))
    frozen = freeze_norms(tiny, tiles(), 32)
    hook.remove()
    affine = frozen.unet.down_blocks[1].resnets[0].norm2
    for channel in (0, 7, 15):
        x, y = (np.concatenate([pair[k][:, channel].numpy().ravel() for pair in seen]).astype(np.float64) for k in (0, 1))
        (gain, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)
        assert float(affine.weight[channel]) == pytest.approx(gain, rel=1e-4)
        assert float(affine.bias[channel]) == pytest.approx(shift, rel=1e-3, abs=1e-4)
    assert frozen.config.unet_norm == "frozen" and tiny.config.unet_norm == "group"
    assert not any(isinstance(m, torch.nn.GroupNorm) for m in frozen.unet.modules())
    assert any(isinstance(m, torch.nn.GroupNorm) for m in tiny.unet.modules())


@torch.no_grad()
def test_the_frozen_model_is_near_on_photos_that_were_not_measured(tiny):
    frozen = freeze_norms(tiny, tiles(), 32)
    ones = dataclasses.replace(frozen, unet=freeze_norms(tiny, tiles(), 32).unet)
    for m in ones.unet.modules():
        if isinstance(m, ChannelAffine):
            m.weight.fill_(1.0)
            m.bias.zero_()
    lr = torch.cat([tile for tile, _ in tiles(4, seed=9)])
    enlarged = Pipeline(tiny, 32).modules_by_name["unet"].enlarge(lr)
    wanted, fitted, plain = (Pipeline(m, 32)(lr) - enlarged for m in (tiny, frozen, ones))
    assert relative_l2(wanted, fitted) < 0.95 * relative_l2(wanted, plain)


def test_a_channel_that_never_changes_keeps_its_output(tiny):
    still = dataclasses.replace(tiny, unet=checkpoint.load("tiny").unet)
    still.unet.conv_in.weight.data[3] = 0
    still.unet.conv_in.bias.data[3] = 0.5
    affine = freeze_norms(still, tiles(2), 32).unet.down_blocks[0].resnets[0].norm1
    assert float(affine.weight[3]) == 0 and torch.isfinite(affine.bias).all()


def test_what_has_no_group_norms_and_no_photos_are_refused(tiny):
    with pytest.raises(UsageError, match="'frozen' already"):
        freeze_norms(freeze_norms(tiny, tiles(1), 32), tiles(1), 32)
    with pytest.raises(UsageError, match="no photo"):
        freeze_norms(tiny, [], 32)


@pytest.mark.parametrize("target", TARGETS)
def test_affines_are_folded_where_that_is_exact(tiny, target):
    frozen = freeze_norms(tiny, tiles(), 32)
    graph = build_components(frozen, 32)
    examples = []
    for tile, _ in tiles(2):
        tensors = graph.run(tile)
        examples.append([tensors["lr"], tensors["context"]])
    found = rewrite(graph.components["unet"].module, load_converter(target).rewrites, f"unet/{target}", examples)
    record = next(r for r in found.records if r.name == "fold_channel_affine")
    blocks = [m for m in found.module.modules() if type(m).__name__ == "UnscaledResnet"]
    transformers = [m for m in found.module.modules() if type(m).__name__ == "Transformer2DModel"]
    assert record.count == len(blocks) + len(transformers) and record.relative_l2 <= 1e-5
    left = [name for name, m in found.module.named_modules() if isinstance(m, ChannelAffine)]
    assert left and all(name.endswith(("norm1", "conv_norm_out")) for name in left)


def test_distill_freezes_and_draws_the_student_to_what_it_gave(tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[40:200, 60:220]).save(tmp_path / "photos" / f"{name}.png")
    checkpoint.save(tiny, tmp_path / "tiny")
    options = DistillOptions(
        images=tmp_path / "photos", out=tmp_path / "out", student=str(tmp_path / "tiny"), freeze_norms=True, aim="teacher", steps=40, batch=4, crop=32,
        holdout=1, warmup=5, lr=2e-3, evaluate_every=20, evaluation_tile=32, log_every=10, device="cpu", amp=False, dtype="float32",
    )  # fmt: skip
    result = distill(options)
    assert checkpoint.load(tmp_path / "out").config.unet_norm == "frozen" and result.best_psnr_y > 20
    log = [json.loads(line) for line in (tmp_path / "out.run" / "log.jsonl").read_text().splitlines()]
    distances = [entry["teacher"] for entry in log if "teacher" in entry]
    assert distances[-1] < 0.8 * distances[0], distances
