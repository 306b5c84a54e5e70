"""What many tests need: one exported bundle (the tiny model, every target, fp32 and fp16, on the real toolchains), a photo, a folder to leave empty."""

import os
import shutil

import filelock
import hypothesis
import pytest

# A CI run judges the change at hand, so its examples are the same every time; people's own runs look for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def cache(request):
    """The export cache of the tests, in the environment of every child.

    It lies in pytest's own cache and outlives the session: its entries are named by all that went into them, the source among it, so that only what a change
    concerns is exported anew. ``--cache-clear`` empties it; a clean clone has none.
    """
    folder = request.config.cache.mkdir("exports")
    before = os.environ.get("F2I_CACHE")
    os.environ["F2I_CACHE"] = str(folder)
    yield folder
    os.environ.pop("F2I_CACHE") if before is None else os.environ.update(F2I_CACHE=before)


@pytest.fixture(scope="session")
def tiny_bundle(cache, tmp_path_factory):
    """Path of the exported bundle. Tests that change it take ``bundle_copy``."""
    from f2i_export.write_bundle import ExportOptions, export_bundle

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    # Of several test processes the first exports, with all processors; the others find its work in the cache.
    with filelock.FileLock(cache / "tiny.lock"):
        export_bundle(ExportOptions("tiny", out, precisions=("fp32", "fp16")))
    return out


@pytest.fixture(scope="session")
def npu_bundle(cache, tmp_path_factory):
    """The tiny model in fp16, compiled for one Snapdragon chip's NPU. Tests that change it copy it."""
    from f2i_export.write_bundle import ExportOptions, export_bundle

    out = tmp_path_factory.mktemp("npu") / "tiny"
    return export_bundle(ExportOptions("tiny", out, ("onnx",), accelerators=("hexagon",), socs=("Snapdragon 8 Elite",)))


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    """A copy of the bundle that a test may damage."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    return copy


@pytest.fixture(scope="session")
def tiny_int8(tmp_path_factory):
    """The tiny checkpoint quantized to w8a8 on four tiles of the sample photos. Of several test processes the first makes it. Tests that change it copy it."""
    from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
    from f2i_quantize.ptq.recipe import load_recipe

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    out = root / "int8" / "tiny"
    with filelock.FileLock(root / "int8.lock"):
        if not out.exists():
            quantize_checkpoint(QuantizeOptions("tiny", load_recipe("w8a8").model_copy(update={"tiles": 4}), out))
    return out


@pytest.fixture(scope="session")
def chelsea():
    """uint8 (300, 451, 3)."""
    import skimage.data

    return skimage.data.chelsea()


@pytest.fixture
def lone(tmp_path):
    """A folder for outputs that must stay empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []
