"""``--ground-truth``: every crop is compared with what lies at the same place of the high-resolution photo, or the photo is refused."""

import numpy as np
import pytest
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.fidelity import psnr_y
from f2i_runtime.metrics.st_lpips import st_lpips, weights_file
from f2i_runtime.photo.resample import resize_matrix
from f2i_runtime.photo.whole_photo import read_photo
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import REFERENCE, Variant
from f2i_runtime.validation.reference_run import context_rel_l2, stitch
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from PIL import Image

CROP = 64


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
    shown = result[: wanted.shape[0], : wanted.shape[1]]
    assert row.psnr_y_hr == pytest.approx(psnr_y(wanted, shown, 2), abs=1e-3)
    assert row.st_lpips_hr == (None if weights_file() is None else pytest.approx(st_lpips(wanted, shown), abs=1e-4))
    given = read_photo(images / "cat.png")[y : y + CROP, x : x + CROP]
    rows, columns = (resize_matrix(side, side // 2) for side in result.shape[:2])
    small = np.clip(np.einsum("ij,jkc,lk->ilc", rows, np.clip(result, 0, 1), columns), 0, 1)
    assert row.lr_consistency_db == pytest.approx(-10 * np.log10(np.mean((small - given) ** 2)), abs=1e-3)


@pytest.mark.parametrize("high", [(1000, 1000), (250, 250), (498, 500), (502, 500), (500, 496)])
def test_a_truth_of_another_size_is_refused(tiny_bundle, chelsea, tmp_path, high):
    images, truth = pair(tmp_path, chelsea, (250, 250), high)
    with pytest.raises(UsageError, match=r"expected 2 times cat\.png, which is 250x250: 500x500") as caught:
        figures(open_bundle(tiny_bundle), images, truth)
    assert "\n" not in str(caught.value)


def test_the_report_says_how_far_the_output_moves_without_its_context(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    report = validate(bundle, ValidateOptions(target="onnx", precision="fp32", tiles=2, photos=0, threads=1))
    with open_pipeline(bundle, REFERENCE, threads=1) as reference:
        tiles = [reference.tensors(cut) for cut in (np.random.default_rng(k).random((1, 3, 32, 32), np.float32) for k in range(2))]
        moved = context_rel_l2(reference, tiles)
        without = [reference.run("unet", {"lr": t["lr"], "context": 0 * t["context"]}) for t in tiles]
        dead = [reference.tensors(t["lr"], given={"context": 0 * t["context"]}) for t in tiles]
        assert context_rel_l2(reference, dead) == 0.0 and context_rel_l2(reference, [{"lr": tiles[0]["lr"]}]) is None
    energy = [
        sum(float(np.sum(x.astype(np.float64) ** 2)) for x in xs)
        for xs in ([w - t["sr"] for w, t in zip(without, tiles, strict=True)], [t["sr"] for t in tiles])
    ]
    assert moved == pytest.approx((energy[0] / energy[1]) ** 0.5, rel=1e-3) and moved > 0
    assert report.environment.context_rel_l2 is not None and report.environment.context_rel_l2 > 0
    assert not any("context" in gate.figure for gate in report.gates)
