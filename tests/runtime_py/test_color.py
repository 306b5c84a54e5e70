"""The colour fix: a result gets the photo's own means and spreads back, in every depth and layout."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from f2i_bench.host.photo_predictor import RepeatPipeline
from f2i_runtime.bundle.manifest import parse_color_fix, parse_manifest
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.color import ColorSums
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.writer import PhotoWriter
from f2i_runtime.pipeline import PhotoOptions, upscale_photo
from f2i_runtime.targets import Variant
from PIL import Image
from repository import TESTS

MANIFEST = parse_manifest((TESTS / "data" / "manifest.json").read_text(), "m")


class Tinting(RepeatPipeline):
    """Enlarges by repetition, and shifts and flattens colours as an untrained decoder does."""

    def tile(self, lr, position=(0, 0)):
        gain = np.array([0.8, 0.7, 0.9], np.float32)[:, None, None]
        return super().tile(lr, position) * gain + np.float32(0.05)


def tinting(color_fix="none"):
    return Tinting(Bundle(Path("."), MANIFEST.model_copy(update={"color_fix": color_fix})), Variant("none", "none"), {}, {})


def pixels(path):
    with PhotoReader(path) as reader:
        return reader.rows(0, reader.height)


def photo(path, mode="RGB"):
    image = Image.fromarray(skimage.data.chelsea()[:90, :120]).convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)
    return path


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_colors_come_back(tmp_path, bit_depth):
    source, out = photo(tmp_path / "a.png"), tmp_path / "out.png"
    upscale_photo(tinting(), source, out, PhotoOptions(bit_depth=bit_depth))
    wanted = pixels(source).repeat(2, 0).repeat(2, 1)
    assert np.abs(pixels(out) - wanted).max() > 0.1
    upscale_photo(tinting(), source, out, PhotoOptions(bit_depth=bit_depth, color_fix="adain"))
    assert np.abs(pixels(out) - wanted).max() <= {8: 1.0, 16: 0.05}[bit_depth] / 255


def test_a_model_asks_for_it_and_an_option_refuses_it(tmp_path):
    source = photo(tmp_path / "a.png")
    upscale_photo(tinting("adain"), source, tmp_path / "asked.png")
    upscale_photo(tinting(), source, tmp_path / "option.png", PhotoOptions(color_fix="adain"))
    upscale_photo(tinting("adain"), source, tmp_path / "refused.png", PhotoOptions(color_fix="none"))
    assert np.array_equal(pixels(tmp_path / "asked.png"), pixels(tmp_path / "option.png"))
    assert not np.allclose(pixels(tmp_path / "asked.png"), pixels(tmp_path / "refused.png"), atol=0.05)


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA"])
def test_alpha_and_grey_are_kept(tmp_path, mode):
    source = photo(tmp_path / "a.png", mode)
    for fix in ("none", "adain"):
        upscale_photo(tinting(), source, tmp_path / f"{fix}.png", PhotoOptions(color_fix=fix))
    plain, fixed = (np.asarray(Image.open(tmp_path / f"{fix}.png")) for fix in ("none", "adain"))
    with Image.open(tmp_path / "adain.png") as picture:
        assert picture.mode == mode
    if "A" in mode:
        assert np.abs(plain[..., -1].astype(int) - fixed[..., -1]).max() <= 1
    wanted = pixels(source).repeat(2, 0).repeat(2, 1)
    assert np.abs(pixels(tmp_path / "adain.png").mean() - wanted.mean()) < 2 / 255


def test_a_flat_photo_stays_flat(tmp_path):
    Image.new("RGB", (40, 40), (10, 200, 90)).save(tmp_path / "a.png")
    upscale_photo(tinting(), tmp_path / "a.png", tmp_path / "out.png", PhotoOptions(color_fix="adain"))
    assert np.abs(pixels(tmp_path / "out.png") * 255 - (10, 200, 90)).max() <= 1


def test_what_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="expected none or adain"):
        parse_color_fix("wavelets")
    with pytest.raises(UsageError, match="recolor=True"), PhotoWriter(tmp_path / "a.png", 4, 4) as writer:
        writer.recolor(np.ones(3), np.zeros(3))


@pytest.mark.parametrize("level, spread", [(0.95, 0.004), (0.5, 0.004), (0.99, 0.0005), (0.02, 0.002)])
@pytest.mark.parametrize("grey", [False, True])
def test_wide_bright_flat_photos_keep_their_gain(level, spread, grey):
    """Eight thousand pixels wide: sums of squares in float32 gave such photos gains of 0, or of 4 to 6."""
    rng = np.random.default_rng(0)
    rows = (level + spread * rng.standard_normal((512, 8000, 1 if grey else 3))).astype(np.float32)
    sums = ColorSums(lambda samples: samples, grey=grey)
    read = sums.reading(lambda y0, y1: rows[y0:y1])
    for y in range(0, 512, 256):
        block = np.clip(read(y, y + 256), 0, 1)
        sums.wrote(block.repeat(3, axis=2) if grey else block)
    gain, offset = sums.affine()
    assert np.abs(gain - 1).max() < 0.02 and np.abs(gain * level + offset - level).max() < 1e-4
