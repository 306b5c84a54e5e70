"""``--ground-truth``: every crop is compared with what lies at the same place of the high-resolution photo, or the photo is refused."""

import numpy as np
import pytest
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.fidelity import psnr_y
from f2i_runtime.photo.whole_photo import read_photo
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import Variant
from f2i_runtime.validation.reference_run import stitch
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from PIL import Image

CROP = 160


def pair(folder, chelsea, low, high):
    """A photo of ``low`` pixels (height, width) and a truth of ``high``, both of random texture, so that two pixels beside the right place are far off."""
    for name in ("low", "high"):
        (folder / name).mkdir()
    truth = np.random.default_rng(0).integers(0, 256, (*high, 3), dtype=np.uint8)
    Image.fromarray(truth).save(folder / "high" / "cat.png")
    Image.fromarray(chelsea[: low[0], : low[1]]).save(folder / "low" / "cat.png")
    return folder / "low", folder / "high"


def figures(bundle, images, truth):
    options = ValidateOptions(
        images, truth, target="onnx", precision="fp32", tiles=1, photos=1, photo_side=CROP / bundle.manifest.tile.size, threads=1
    )
    return validate(bundle, options).photos[0]


@pytest.mark.parametrize("low", [(250, 250), (250, 301), (160, 299), (161, 175)])
def test_the_truth_is_cut_at_the_crops_place(tiny_bundle, chelsea, tmp_path, low):
    bundle = open_bundle(tiny_bundle)
    images, truth = pair(tmp_path, chelsea, low, (2 * low[0] - 1, 2 * low[1]))
    row = figures(bundle, images, truth)
    y, x = ((side - CROP) // 2 for side in low)
    with open_pipeline(bundle, Variant("onnx", "fp32"), threads=1) as pipeline:
        result, _ = stitch(pipeline, np.ascontiguousarray(read_photo(images / "cat.png")[y : y + CROP, x : x + CROP]))
    wanted = read_photo(truth / "cat.png")[2 * y : 2 * (y + CROP), 2 * x : 2 * (x + CROP)]
    assert row.psnr_y_hr == pytest.approx(psnr_y(wanted, result[: wanted.shape[0], : wanted.shape[1]], 2), abs=1e-3)


@pytest.mark.parametrize("high", [(1000, 1000), (250, 250), (498, 500), (502, 500), (500, 496)])
def test_a_truth_of_another_size_is_refused(tiny_bundle, chelsea, tmp_path, high):
    images, truth = pair(tmp_path, chelsea, (250, 250), high)
    with pytest.raises(UsageError, match=r"expected 2 times cat\.png, which is 250x250: 500x500") as caught:
        figures(open_bundle(tiny_bundle), images, truth)
    assert "\n" not in str(caught.value)
