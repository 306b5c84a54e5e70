"""The overlap that is measured: as large as the model needs, and no larger."""

import numpy as np
import pytest
from f2i_runtime.bundle.manifest import Gates, TileSpec
from f2i_runtime.errors import UsageError
from f2i_runtime.tiling.blend import upscale_array
from f2i_runtime.tiling.overlap import ROUNDING, choose_overlap, sample_pairs
from f2i_runtime.tiling.seams import seam_bands
from f2i_runtime.tiling.tile_plan import TilePlan, parse_overlap
from scipy.ndimage import uniform_filter1d

TILE = TileSpec(size=64, scale=2, overlap=4, multiple=4)


def blur(radius):
    """A box filter that sees zeros beyond the tile, as convolutions with padding do, enlarged twice."""

    def upscale(tile):
        for axis in (2, 3):
            tile = uniform_filter1d(tile, 2 * radius + 1, axis=axis, mode="constant")
        return tile.repeat(2, 2).repeat(2, 3)

    return upscale


def whole(photo, radius):
    return blur(radius)(photo.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)


def test_a_model_without_neighbours_needs_none():
    found = choose_overlap(blur(0), TILE, Gates())
    assert (found.overlap, found.receptive_field, found.floor_db) == (0, 0, None)


@pytest.mark.parametrize("radius", [2, 6])
def test_the_receptive_field_is_found_and_seams_are_gone(radius):
    found = choose_overlap(blur(radius), TILE, Gates())
    assert found.receptive_field in (radius - 1, radius)
    assert radius < found.overlap <= 6 * radius

    def band_error(overlap):
        """Against the whole image, on a photo whose tiles share exactly ``overlap``."""
        side = TILE.size + 2 * (TILE.size - overlap)
        photo = sample_pairs(TileSpec(size=256, scale=2, overlap=0, multiple=4))[1][:, :side, :side].transpose(1, 2, 0)
        plan = TilePlan(side, side, tile=TILE.size, overlap=overlap)
        error = upscale_array(photo, plan, lambda tile, _: blur(radius)(tile)) - whole(photo, radius)
        rows, columns = seam_bands(plan)
        return float(np.sqrt(np.mean(error[rows[:, None] | columns] ** 2)))

    limit = Gates().seam_ratio * ROUNDING  # on average over photos, of which this is one
    assert band_error(found.overlap) <= 2 * limit < band_error(found.overlap - 2 * radius)


def test_what_no_overlap_mends_is_said():
    """A gain drawn from the tile's mean, as a norm over the tile gives: the floor is high, and the edge is not to blame."""
    found = choose_overlap(lambda tile: (tile - 0.3 * tile.mean()).repeat(2, 2).repeat(2, 3), TILE, Gates())
    assert found.floor_db is not None and found.floor_db < 50
    assert found.overlap == 0 and found.seam_ratio < 1.2


def test_the_largest_overlap_is_taken_where_none_is_enough():
    """An edge that is felt across the whole tile."""
    ramp = np.linspace(1, 0.5, 64, dtype=np.float32)
    found = choose_overlap(lambda tile: (tile * ramp).repeat(2, 2).repeat(2, 3), TILE, Gates())
    assert found.overlap < 32 and found.floor_db is not None


def test_overlaps_as_options_give_them():
    assert [parse_overlap(text) for text in (None, "0", "24", "auto")] == [None, 0, 24, "auto"]
    for text in ("-1", "1.5", "much", ""):
        with pytest.raises(UsageError, match="expected a number of pixels, or auto"):
            parse_overlap(text)
    with pytest.raises(UsageError, match="has no half"):
        choose_overlap(blur(1), TileSpec(size=8, scale=2, overlap=0, multiple=8), Gates())
