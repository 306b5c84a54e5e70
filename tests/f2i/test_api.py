"""The public functions, on the tiny model and real engines: what they give, and what they refuse."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
from f2i_runtime.photo.samples import sample_photo
from PIL import Image
from repository import ROOT

import f2i
import f2i.api

HEAVY = (
    "numpy",
    "pydantic",
    "torch",
    "coremltools",
    "executorch",
    "ai_edge_litert",
    "litert_torch",
    "onnx",
    "onnxruntime",
    "pyvips",
    "skimage",
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return f2i.open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def engine(bundle):
    with f2i.open_engine(bundle, target="onnx", precision="fp32") as engine:
        yield engine


def test_import_loads_nothing_else():
    for statement in ("import f2i", "from f2i.coreml_on_linux import install, load"):
        heavy = [name for name in HEAVY if statement == "import f2i" or name not in ("numpy", "pydantic")]
        check = f"{statement}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_all_names_exist_and_type_checkers_see_the_same_ones():
    """Names that only ``__getattr__`` knows would be ``Any`` to a type checker, so every one is imported under TYPE_CHECKING too."""
    tree = ast.parse((ROOT / "f2i" / "__init__.py").read_text())
    [guarded] = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    seen = {alias.name for node in guarded.body for alias in node.names}
    assert sorted(seen) == sorted(f2i.__all__) and len(set(f2i.__all__)) == len(f2i.__all__)
    assert set(f2i.api.__all__) <= set(f2i.__all__)
    for name in f2i.__all__:
        assert getattr(f2i, name) is not None
    for name in f2i.api.__all__:
        assert getattr(f2i, name) is getattr(f2i.api, name) and getattr(f2i, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'upscael'"):
        _ = f2i.upscael


def test_errors_are_one_tree():
    assert all(issubclass(getattr(f2i, name), f2i.F2IError) for name in f2i.__all__ if name.endswith("Error"))


@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (101, 150)])
def test_an_array_of_any_size_is_upscaled_in_its_own_type(engine, chelsea, shape):
    image = chelsea[: shape[0], : shape[1]]
    result = f2i.upscale(engine, image)
    assert result.dtype == np.uint8 and result.shape == (2 * shape[0], 2 * shape[1], 3)
    exact = f2i.upscale(engine, image.astype(np.float32) / np.float32(255))
    assert exact.dtype == np.float32 and exact.min() >= 0 and exact.max() <= 1
    assert np.abs(exact * 255 - result).max() <= 0.51  # rounded, and the last bit of the input made larger by the model


@pytest.mark.parametrize("color_fix", ["none", "adain"])
def test_an_array_and_a_file_give_the_same_pixels(engine, chelsea, tmp_path, color_fix):
    Image.fromarray(chelsea[:60, :70]).save(tmp_path / "photo.png")
    options = f2i.PhotoOptions(color_fix=color_fix, overlap=8)
    assert f2i.upscale_file(engine, tmp_path / "photo.png", str(tmp_path / "big.png"), options) == []
    difference = np.asarray(Image.open(tmp_path / "big.png")).astype(int) - f2i.upscale(engine, chelsea[:60, :70], options)
    # The colour fix of a file is applied to samples that waited in 16 bits, in libvips' own arithmetic.
    assert np.abs(difference).max() <= (1 if color_fix == "adain" else 0)


def test_a_bundle_opens_its_own_engine(bundle, chelsea):
    result = f2i.upscale(bundle, chelsea[:20, :20])
    variant = bundle.manifest.variants()[0]
    with f2i.open_engine(bundle, target=variant[0], precision=variant[1]) as engine:
        assert np.abs(result.astype(int) - f2i.upscale(engine, chelsea[:20, :20])).max() <= 1


def test_the_reference_is_an_engine_too(bundle, engine, chelsea):
    with f2i.open_engine(bundle, target="torch") as reference:
        assert np.abs(f2i.upscale(reference, chelsea[:40, :40]).astype(int) - f2i.upscale(engine, chelsea[:40, :40])).max() <= 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), "dtype float64"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32"),
        ([[[0, 0, 0]]], "list"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((3, 4, 4), np.float32), r"shape \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.full((4, 4, 3), 255, np.float32), r"from 255 to 255; expected \[0, 1\]"),
        (np.full((4, 4, 3), -0.01, np.float32), r"from -0.01"),
        (np.full((4, 4, 3), np.nan, np.float32), "nan"),
    ],
)
def test_arrays_that_are_no_image_are_refused(engine, image, words):
    with pytest.raises(f2i.UsageError, match=words):
        f2i.upscale(engine, image)


def test_refusals_name_what_is_wrong(bundle, engine, tmp_path):
    with pytest.raises(f2i.BundleError, match="no such folder"):
        f2i.open_bundle(tmp_path / "nothing")
    with pytest.raises(f2i.BundleError, match="tiny: "):
        f2i.open_engine(bundle, precision="w8a8")
    with pytest.raises(f2i.PhotoError, match=r"none\.jpg"):
        f2i.upscale_file(engine, tmp_path / "none.jpg", tmp_path / "out.png")
    with pytest.raises(f2i.UsageError, match="choose from"):
        f2i.export("tiny", tmp_path / "b", targets=["tensorrt"])
    with pytest.raises(f2i.UsageError, match="nothing to export"):
        f2i.export("tiny", tmp_path / "b", targets=[])
    with pytest.raises(f2i.UsageError, match="w3a3"):
        f2i.quantize("tiny", tmp_path / "q", recipe="w3a3")
    assert not list(tmp_path.iterdir())


def test_verify_and_inspect_say_what_the_command_says(bundle):
    listed = bundle.manifest.files()
    assert f2i.verify(bundle) == sum(record.bytes for record in listed)
    found = f2i.inspect(bundle)
    assert isinstance(found, f2i.Inspection) and len(found.artifacts) == len(bundle.manifest.artifacts) and json.dumps(found.as_json())


def test_validate_returns_its_report(bundle):
    options = f2i.ValidateOptions(target="onnx", precision="fp32", tiles=1, photos=1)
    report = f2i.validate(bundle, options)
    assert isinstance(report, f2i.Report) and report.passed and report.as_json()["passed"]


def test_list_targets_knows_what_is_installed(bundle):
    support = {row.name: row for row in f2i.list_targets()}
    assert {variant[0] for variant in bundle.manifest.variants()} <= set(support)
    assert all(row.can_export and row.can_run and "fp16" in row.precisions for row in support.values())


def test_export_and_quantize_from_python(cache, tiny_int8, tmp_path):
    """What the command does, one target, in int8 from a checkpoint that the same room's fixture quantized."""
    events = []
    bundle = f2i.export(tiny_int8, tmp_path / "bundle", targets=["onnx"], precisions=["w8a8"], on_event=events.append)
    assert [tuple(variant[:2]) for variant in bundle.manifest.variants()] == [("onnx", "w8a8")]
    assert events and f2i.verify(bundle) > 0
    with pytest.raises(f2i.UsageError, match="exists already"):
        f2i.quantize("tiny", tiny_int8)


def test_sample_photo_from_file_to_file(engine, tmp_path):
    done = []
    f2i.upscale_file(engine, sample_photo("chelsea.png"), tmp_path / "big.jpg", progress=lambda k, n: done.append((k, n)))
    with Image.open(tmp_path / "big.jpg") as picture:
        assert picture.size == (902, 600) and done[-1][0] == done[-1][1] == len(done)


def test_the_example_runs(tiny_bundle, tmp_path):
    command = [sys.executable, ROOT / "examples" / "python_api.py", "tiny", tmp_path / "example"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("chelsea (600, 902, 3) uint8 by ") and done.stdout.endswith("gates passed\n")
    with Image.open(tmp_path / "example" / "coffee_x2.jpg") as picture:
        assert picture.size == (1200, 800)
