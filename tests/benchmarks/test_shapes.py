"""The search among shapes: a row is trained and measured once, a run goes on, and the table says what was found."""

import json

import pytest
from f2i_bench.npu.estimate_records import read_qualities
from f2i_bench.suites import shapes as module
from f2i_bench.suites.shapes import SearchOptions, ShapeReport, ShapeRow, built_in, main, read_shapes, search, table
from f2i_quantize.train.new_student import shape_of
from f2i_runtime.errors import F2IError
from PIL import Image
from skimage import data as photos

SHAPE = {
    "model": {"name": "little", "base": "bicubic", "unet_norm": "none"},
    "unet": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "layers_per_block": 1,
        "act_fn": "relu",
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    },
    "feature_encoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2},
}


@pytest.fixture
def options(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[40:200, 60:220]).save(tmp_path / "photos" / f"{name}.png")
    return SearchOptions(
        tmp_path / "search", tmp_path / "photos", steps=2, batch=1, crop=32, tile=32, precisions=(), encoder=None, holdout=1
    )


def test_a_shape_is_trained_and_measured_once(options, monkeypatch):
    wide = {**SHAPE, "unet": {**SHAPE["unet"], "block_out_channels": [16, 16]}}
    first = search({"little": shape_of(SHAPE, "x")}, options)
    [row] = first.rows
    assert row.psnr_y > 20 and row.gflop > 0 and row.parameters > 0 and row.cpu_ms is None and row.npu_ms == {}
    measured = []
    monkeypatch.setattr(module, "_measure", lambda name, *rest: measured.append(name) or first.rows[0].model_copy(update={"name": name}))
    again = search({"little": shape_of(SHAPE, "x"), "wide": shape_of(wide, "x")}, options)
    assert measured == ["wide"] and [r.name for r in again.rows] == ["little", "wide"]
    assert json.loads((options.out / "shapes.json").read_text()) == again.as_json()
    assert read_qualities(options.out / "quality.json") == {row.checkpoint: round(row.psnr_y, 3)}
    assert (options.out / "shapes.md").read_text() == table(again)


def test_the_table_has_the_best_first_and_no_figure_that_was_not_measured():
    row = ShapeRow(
        name="a", key="k", checkpoint="c", parameters=2_500_000, gflop=1.25, psnr_y=30.0, training_seconds=1, cpu_ms=12.3, npu_ms={"fp16": 1.5},
        uncosted_ops=1,
    )  # fmt: skip
    other = row.model_copy(update={"name": "b", "psnr_y": 31.0, "cpu_ms": None, "npu_ms": {}})
    lines = table(ShapeReport(tile=128, steps=9, rows=(row, other))).splitlines()
    assert lines[0] == "| shape | M parameters | GFLOP | NPU fp16 ms | CPU fp32 ms | PSNR-Y dB |"
    assert lines[2:4] == ["| b | 2.50 | 1.2 | – | – | 31.00 |", "| a | 2.50 | 1.2 | 1.50* | 12 | 30.00 |"]


def test_the_built_in_shapes_are_shapes_and_a_wrong_one_is_named(tmp_path, capsys):
    assert len(built_in()) == len(module.BUILT_IN)
    for name, shape in built_in().items():
        assert shape_of(shape.model_dump(), name) == shape
    (tmp_path / "shapes.json").write_text(json.dumps({"good": SHAPE, "bad": {**SHAPE, "unet": {"act": 1}}}))
    with pytest.raises(F2IError, match=r"shapes\.json: bad: unet does not say"):
        read_shapes(tmp_path / "shapes.json")
    assert main([str(tmp_path / "out"), "--images", str(tmp_path), "--shapes", str(tmp_path / "shapes.json")]) == 2
    assert "bad: unet does not say" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--images", "nowhere"), "nowhere: no such folder of photos"),
        (("--images", "photos", "--set", "nowhere"), "nowhere/HR: no such folder of photos"),
        (("--images", "photos", "--target", "toaster"), "toaster"),
        (("--images", "photos", "--precision", "w4"), "precision 'w4' is not one that the NPU is estimated in"),
    ],
)
def test_what_would_end_the_search_later_is_refused_before_it(options, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "search").exists()
