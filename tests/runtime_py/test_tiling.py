"""Tiles: exact reconstruction, equality with the whole image, order, shutdown and seams."""

import itertools
import threading

import numpy as np
import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.tiling.blend import TilePlan, upscale_array, upscale_blocks, upscale_rows, window
from f2i_runtime.tiling.seams import SeamSums, seam_bands, seam_ratio
from hypothesis import given, settings
from hypothesis import strategies as st


def nearest(scale):
    return lambda tile, position: tile.repeat(scale, axis=2).repeat(scale, axis=3)


def photo(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


@st.composite
def plans(draw):
    align = draw(st.sampled_from([1, 1, 2, 4]))
    tile = align * draw(st.integers(1, 24 // align))
    overlap = align * draw(st.integers(0, max(0, (tile - 1) // 2) // align))
    margin = draw(st.integers(0, max(0, (overlap - 1) // 2)))
    return TilePlan(
        draw(st.integers(1, 70)),
        draw(st.integers(1, 70)),
        tile=tile,
        overlap=overlap,
        scale=draw(st.integers(1, 3)),
        margin=margin,
        align=align,
        fade=draw(st.sampled_from(["hann", "linear"])),
    )


@settings(deadline=None, max_examples=150)
@given(plans())
def test_tiles_cover_the_photo_with_at_least_the_overlap(plan: TilePlan):
    for origins, length in ((plan.rows, plan.height), (plan.columns, plan.width)):
        assert origins[0] == 0
        assert all(o % plan.align == 0 for o in origins)
        assert length <= origins[-1] + plan.tile < max(length + plan.align, plan.tile + 1)
        assert all(0 < b - a <= plan.tile - plan.overlap for a, b in itertools.pairwise(origins))
        fewest = max(1, -(-(length - plan.overlap) // (plan.tile - plan.overlap)))
        # One more only where the length is not a multiple of align.
        assert fewest <= len(origins) <= fewest + (length % plan.align != 0)


@settings(deadline=None, max_examples=150)
@given(plans())
def test_weights_sum_to_one_and_margins_get_none(plan: TilePlan):
    for origins, weights in ((plan.rows, plan.row_weights), (plan.columns, plan.column_weights)):
        side, scale = plan.tile * plan.scale, plan.scale
        total = np.zeros(origins[-1] * scale + side)
        for i, origin in enumerate(origins):
            total[origin * scale : origin * scale + side] += weights[i]
            assert weights[i].min() >= 0.0
            if plan.margin and i > 0:
                assert not weights[i][: plan.margin * scale].any()
            if plan.margin and i + 1 < len(origins):
                assert not weights[i][side - plan.margin * scale :].any()
        np.testing.assert_allclose(total, 1.0, atol=3e-7)


@settings(deadline=None, max_examples=80)
@given(plans(), st.sampled_from([0, 0, 1, 3]))
def test_nearest_upscaler_reconstructs(plan: TilePlan, threads):
    image = photo(plan.height, plan.width)
    result = upscale_array(image, plan, nearest(plan.scale), threads=threads)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, image.repeat(plan.scale, 0).repeat(plan.scale, 1), atol=1e-6)


def box_blur(image, radius):
    """A model of bounded receptive field: box filter with zeros outside, in float64, (H, W, 3)."""
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1, 2 * radius + 1), axis=(0, 1))
    return windows.mean(axis=(3, 4))


@pytest.mark.parametrize("size", [(61, 47), (32, 90), (33, 20)])
def test_margin_of_the_receptive_field_equals_the_whole_image(size):
    image, radius = photo(*size), 3

    def model(tile, position):
        return box_blur(tile[0].transpose(1, 2, 0), radius).transpose(2, 0, 1)[None]

    plan = TilePlan(*size, tile=20, overlap=9, scale=1, margin=radius)
    np.testing.assert_allclose(upscale_array(image, plan, model), box_blur(image, radius), atol=1e-6)
    plain = TilePlan(*size, tile=20, overlap=9, scale=1)
    assert np.abs(upscale_array(image, plain, model) - box_blur(image, radius)).max() > 1e-4


def test_align_keeps_a_strided_model_exact():
    image = photo(50, 38)

    def model(tile, position):
        pooled = tile.reshape(1, 3, tile.shape[2] // 4, 4, tile.shape[3] // 4, 4).mean(axis=(3, 5))
        return pooled.repeat(4, 2).repeat(4, 3)

    plan = TilePlan(50, 38, tile=16, overlap=4, scale=1, align=4)
    padded = np.pad(image, ((0, 2), (0, 2), (0, 0)), mode="reflect").transpose(2, 0, 1)[None]
    whole = model(padded, (0, 0))[0].transpose(1, 2, 0)[:50, :38]
    np.testing.assert_allclose(upscale_array(image, plan, model), whole, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2), (64, 3)])
def test_photos_smaller_than_a_tile(size):
    seen = []

    def model(tile, position):
        seen.append((tile.copy(), position))
        return nearest(2)(tile, position)

    image = photo(*size)
    plan = TilePlan(*size, tile=32, overlap=8)
    np.testing.assert_allclose(upscale_array(image, plan, model), image.repeat(2, 0).repeat(2, 1), atol=1e-6)
    assert all(tile.shape == (1, 3, 32, 32) and tile.flags.c_contiguous and tile.dtype == np.float32 for tile, _ in seen)
    if size == (1, 1):
        assert np.all(seen[0][0] == image[0, 0][:, None, None])


def test_reading_only_advances_and_holds_one_row_of_tiles():
    plan, calls, image = TilePlan(300, 40, tile=32, overlap=8), [], photo(300, 40)

    def read(y0, y1):
        calls.append((y0, y1))
        return image[y0:y1]

    sizes = [rows.shape for rows in upscale_rows(read, plan, nearest(2))]
    assert list(itertools.chain.from_iterable(range(a, b) for a, b in calls)) == list(range(300))
    assert all(b - a <= 32 for a, b in calls)
    assert sum(n for n, _, _ in sizes) == 600
    assert max(n for n, _, _ in sizes) <= 64


@settings(deadline=None, max_examples=60)
@given(plans())
def test_blocks_come_once_each_in_reading_order(plan: TilePlan):
    image = photo(plan.height, plan.width)
    result = np.full((*plan.output_shape, 3), np.nan, dtype=np.float32)
    positions = []
    for y, x, block in upscale_blocks(lambda a, b: image[a:b], plan, nearest(plan.scale)):
        target = result[y : y + block.shape[0], x : x + block.shape[1]]
        assert target.shape == block.shape
        assert np.isnan(target).all()
        target[:] = block
        block[:] = 7.0  # the caller's own from now on
        positions.append((y, x))
    assert positions == sorted(positions)
    np.testing.assert_allclose(result, image.repeat(plan.scale, 0).repeat(plan.scale, 1), atol=1e-6)


def test_threads_change_nothing_and_run_tiles_side_by_side():
    image, plan = photo(100, 130), TilePlan(100, 130, tile=32, overlap=8)
    gate, order = threading.Barrier(2, timeout=10), []

    def model(tile, position):
        if len(order) < 2:
            order.append(position)
            gate.wait()  # passes only if two tiles run at once
        return nearest(2)(tile, position) * np.float32(0.7)

    reports = []
    threaded = np.concatenate(
        list(upscale_rows(lambda a, b: image[a:b], plan, model, threads=2, progress=lambda d, n: reports.append((d, n))))
    )
    serial = upscale_array(image, plan, lambda tile, position: nearest(2)(tile, position) * np.float32(0.7))
    assert np.array_equal(threaded, serial)
    assert reports == [(i + 1, plan.count) for i in range(plan.count)]


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("f2i-")]


@pytest.mark.parametrize("where", ["read", "tile", "progress", "abandon"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_threads_end_with_the_error(where, error):
    image, plan = photo(200, 60), TilePlan(200, 60, tile=32, overlap=8)

    def fail_when(place, now):
        if place == where and now:
            raise error("stop")

    def read(a, b):
        fail_when("read", a > 100)
        return image[a:b]

    def model(tile, position):
        fail_when("tile", position[0] > 100)
        return nearest(2)(tile, position)

    rows = upscale_rows(read, plan, model, threads=3, progress=lambda d, n: fail_when("progress", d > 7))
    if where == "abandon":
        next(rows)
        rows.close()
    else:
        with pytest.raises(error):
            list(rows)
    assert not alive()


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"tile": 32, "overlap": 16}, "overlap 16 .* tile 32"),
        ({"tile": 32, "overlap": -1}, "overlap -1"),
        ({"tile": 0, "overlap": 0}, "tile 0"),
        ({"tile": 32, "overlap": 8, "margin": 4}, "margin 4 .* overlap 8"),
        ({"tile": 30, "overlap": 8, "align": 4}, "multiples of align 4"),
        ({"tile": 32, "overlap": 8, "scale": 0}, "scale 0"),
        ({"tile": 32, "overlap": 8, "fade": "cosine"}, "unknown fade 'cosine'"),
    ],
)
def test_nonsense_is_refused_in_one_line(kwargs, words):
    with pytest.raises(UsageError, match=words) as caught:
        TilePlan(100, 100, **kwargs)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="0 x 5"):
        TilePlan(5, 0, tile=32, overlap=8)


def test_wrong_shapes_are_refused():
    plan, image = TilePlan(40, 40, tile=32, overlap=8), photo(40, 40)
    with pytest.raises(UsageError, match=r"tile at \(0, 0\) has shape \(1, 3, 32, 32\)"):
        upscale_array(image, plan, lambda tile, position: tile)
    with pytest.raises(UsageError, match="does not fit the plan"):
        upscale_array(image[:30], plan, nearest(2))
    with pytest.raises(UsageError, match="rows 0 to 32 came as"):
        list(upscale_rows(lambda a, b: image[a : b - 1], plan, nearest(2)))
    with pytest.raises(UsageError, match="-1 threads"):
        list(upscale_rows(lambda a, b: image[a:b], plan, nearest(2), threads=-1))


@pytest.mark.parametrize("kind", ["hann", "linear"])
@pytest.mark.parametrize("tile, overlap", [(256, 64), (512, 255), (16, 0)])
def test_window_is_positive_and_adds_up(tile, overlap, kind):
    weights = window(tile, overlap, 2, kind)
    assert weights.dtype == np.float32
    assert weights.shape == (2 * tile, 2 * tile)
    assert weights.min() > np.finfo(np.float32).tiny * 1e6
    assert weights.max() == 1.0
    if overlap:
        middle = weights[tile]
        np.testing.assert_allclose(middle[-2 * overlap :] + middle[: 2 * overlap], 1.0, atol=1e-6)


def test_seam_bands_lie_where_tiles_meet():
    plan = TilePlan(60, 100, tile=40, overlap=10, scale=2)
    assert plan.columns == (0, 30, 60)
    rows, columns = seam_bands(plan)
    assert rows.shape == (120,)
    expected = np.zeros(200, dtype=bool)
    expected[60 - 2 : 80 + 2] = expected[120 - 2 : 140 + 2] = True
    assert np.array_equal(columns, expected)


@pytest.mark.parametrize("overlap", [0, 9])
def test_seam_figures(overlap):
    plan = TilePlan(70, 90, tile=30, overlap=overlap)
    rows, columns = seam_bands(plan)
    band = rows[:, None] | columns
    assert 0 < band.mean() < 0.9
    assert seam_ratio(np.where(band, 0.3, 0.1), plan) == pytest.approx(3.0)
    assert seam_ratio(np.where(band, 0.0, 0.1), plan) == 0.0
    assert seam_ratio(np.where(band, 0.1, 0.0), plan) == np.inf
    assert seam_ratio(np.zeros(band.shape), plan) == 1.0
    assert np.isnan(seam_ratio(np.full(band.shape, np.nan), plan))
    noise = np.random.default_rng(0).normal(size=(*band.shape, 3))
    assert seam_ratio(noise, plan) == pytest.approx(1.0, abs=0.05)
    assert np.isnan(seam_ratio(np.ones((20, 20)), TilePlan(10, 10, tile=30, overlap=overlap)))
    with pytest.raises(UsageError, match="do not fit the plan"):
        seam_ratio(noise[:, :-1], plan)


def test_seam_figures_stream_and_see_a_line():
    plan = TilePlan(120, 120, tile=64, overlap=16)
    error = np.random.default_rng(1).normal(size=(240, 240, 3))
    whole, pieces = SeamSums(plan), SeamSums(plan)
    whole.update(error)
    for y in range(0, 240, 7):
        pieces.update(error[y : y + 7])
    assert pieces.ratio() == pytest.approx(whole.ratio())
    assert pieces.gradient_ratio() == pytest.approx(whole.gradient_ratio())
    # Two tiles that differ by a constant without a cross-fade: a step, which the plain ratio cannot see.
    plan = TilePlan(64, 128, tile=64, overlap=0)
    error = np.full((128, 256), 0.1)
    error[:, 128:] = -0.1
    sums = SeamSums(plan)
    sums.update(error)
    assert sums.ratio() == pytest.approx(1.0)
    assert sums.gradient_ratio() == np.inf
