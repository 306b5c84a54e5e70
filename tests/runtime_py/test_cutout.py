"""Cut-outs: what lies hidden under transparent pixels never shows, whatever it is."""

import numpy as np
import pytest
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.photo.cutout import fill_hidden, visible_rows
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.resample import resize
from f2i_runtime.pipeline import open_pipeline, upscale_photo
from f2i_runtime.targets import Variant
from PIL import Image

SIDE = 64


def disc(color, hidden, soft):
    """uint8 (64, 64, 4): a disc of one colour over nothing, with ``hidden`` under what is transparent."""
    y, x = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(y - 31.5, x - 31.5)
    alpha = np.clip((22 - distance) / (6 if soft else 1e-6), 0, 1)
    rgb = np.where(alpha[..., None] > 0, np.array(color), np.array(hidden)).astype(np.uint8)
    return np.dstack([rgb, np.round(alpha * 255).astype(np.uint8)])


def on_white(rgba):
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


EDGES = [(color, soft) for color in ((250, 250, 250), (200, 40, 60), (20, 160, 90)) for soft in (False, True)]


@pytest.mark.parametrize("color, soft", EDGES)
def test_hidden_colors_change_nothing_that_the_engine_makes(tiny_bundle, tmp_path, color, soft):
    outputs = []
    for k, hidden in enumerate(((0, 0, 0), (255, 255, 255), (255, 0, 255))):
        Image.fromarray(disc(color, hidden, soft)).save(tmp_path / f"{k}.png")
        with open_pipeline(open_bundle(tiny_bundle), Variant("onnx", "fp32"), threads=1) as pipeline:
            upscale_photo(pipeline, tmp_path / f"{k}.png", tmp_path / f"out{k}.png")
        outputs.append(np.asarray(Image.open(tmp_path / f"out{k}.png")))
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (255, 0, 255)])
@pytest.mark.parametrize("color, soft", EDGES)
def test_edges_are_those_of_premultiplied_bicubic(color, soft, hidden):
    rgba = disc(color, hidden, soft)
    alpha = rgba[..., 3].astype(np.float32) / 255
    filled = fill_hidden(rgba[..., :3], alpha)
    large = 2 * SIDE
    opacity = np.clip(resize(alpha.astype(float), large, large), 0, 1)
    colors = np.clip(resize(filled.astype(float), large, large), 0, 255)
    mine = colors * opacity[..., None] + 255 * (1 - opacity[..., None])
    # Resized with their opacity and divided by it again, these colours are the disc's everywhere.
    premultiplied = resize(rgba[..., :3] * alpha[..., None].astype(float), large, large)
    seen = opacity > 0.05
    assert np.abs(premultiplied[seen] / resize(alpha.astype(float), large, large)[seen][:, None] - color).max() < 1e-3
    assert np.abs(mine - (np.array(color) * opacity[..., None] + 255 * (1 - opacity[..., None]))).max() < 1


def test_a_light_cut_out_over_hidden_black_has_no_dark_rim():
    rgba = disc((250, 250, 250), (0, 0, 0), soft=False)
    alpha = rgba[..., 3].astype(np.float32) / 255
    opacity = np.clip(resize(alpha.astype(float), 128, 128), 0, 1)[..., None]

    def darkest(rgb):
        return float((np.clip(resize(rgb.astype(float), 128, 128), 0, 255) * opacity + 255 * (1 - opacity)).min())

    assert darkest(rgba[..., :3]) < 215, "what hidden black does"
    assert darkest(fill_hidden(rgba[..., :3], alpha)) >= 249


def test_strips_do_not_matter_and_opaque_photos_are_left_alone(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (90, 70, 4), dtype=np.uint8)
    noise[..., 3] = np.where(rng.random((90, 70)) < 0.5, 0, noise[..., 3])
    noise[40:80, 5:60, 3] = 0
    Image.fromarray(noise).save(tmp_path / "a.png")
    results = []
    for step in (1, 7, 64, 90):
        with PhotoReader(tmp_path / "a.png") as reader:
            read = visible_rows(reader)
            results.append(np.concatenate([read(y, min(90, y + step)) for y in range(0, 90, step)]))
    assert all(np.array_equal(results[0], other) for other in results[1:])
    visible = noise[..., 3] >= 6
    assert np.array_equal(results[0][visible], noise[..., :3][visible])
    Image.fromarray(noise[..., :3]).save(tmp_path / "b.png")
    with PhotoReader(tmp_path / "b.png") as reader:
        assert visible_rows(reader) == reader.samples
