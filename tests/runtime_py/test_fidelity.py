"""Figures against their formulas, their published values' conventions, and odd input."""

import math

import numpy as np
import pytest
import skimage.data
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics import fidelity as metrics
from f2i_runtime.metrics.fidelity import ErrorSums
from f2i_runtime.metrics.perceptual import gmsd, haarpsi, ms_ssim
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

TENSOR = [metrics.sqnr_db, metrics.relative_l2, metrics.max_abs, metrics.cosine, metrics.psnr_db]
PERCEPTUAL = [metrics.ssim, ms_ssim, gmsd, haarpsi]
BEST = {
    metrics.sqnr_db: math.inf,
    metrics.relative_l2: 0.0,
    metrics.max_abs: 0.0,
    metrics.cosine: 1.0,
    metrics.psnr_db: math.inf,
    metrics.ssim: 1.0,
    ms_ssim: 1.0,
    gmsd: 0.0,
    haarpsi: 1.0,
}


@pytest.fixture(scope="module")
def photo():
    return skimage.data.astronaut()[:256, :240] / 255.0


def noisy(image, sigma=0.05):
    return np.clip(image + np.random.default_rng(0).normal(scale=sigma, size=image.shape), 0, 1)


def test_formulas():
    r, t = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    assert metrics.sqnr_db(r, t) == pytest.approx(10 * math.log10(25 / 0.25))
    assert metrics.relative_l2(r, t) == pytest.approx(0.1)
    assert metrics.max_abs(r, t) == 0.5
    assert metrics.cosine(r, t) == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert metrics.psnr_db(r, t) == pytest.approx(10 * math.log10(1 / 0.125))
    assert metrics.psnr_db(r, t, 255.0) == pytest.approx(10 * math.log10(255**2 / 0.125))


@pytest.mark.parametrize("figure", TENSOR + PERCEPTUAL)
def test_identical_nan_and_shapes(figure, photo):
    assert figure(photo, photo) == pytest.approx(BEST[figure], abs=1e-9)
    assert figure(photo, photo.copy()) == pytest.approx(BEST[figure], abs=1e-9)
    broken = photo.copy()
    broken[5, 5, 1] = np.nan
    assert math.isnan(figure(photo, broken))
    assert math.isnan(figure(broken, photo))
    with pytest.raises(UsageError, match=r"\(256, 240, 3\) and \(255, 240, 3\)"):
        figure(photo, photo[1:])


@pytest.mark.parametrize("figure", TENSOR)
def test_empty_is_refused(figure):
    with pytest.raises(UsageError, match="at least one element"):
        figure(np.zeros((0, 3)), np.zeros((0, 3)))


def test_zero_and_infinite():
    zero, one, endless = np.zeros(4), np.ones(4), np.full(4, np.inf)
    assert metrics.sqnr_db(zero, zero) == math.inf
    assert metrics.sqnr_db(zero, one) == -math.inf
    assert metrics.relative_l2(zero, zero) == 0.0
    assert metrics.relative_l2(zero, one) == math.inf
    assert metrics.cosine(zero, zero) == 1.0
    assert metrics.cosine(zero, one) == metrics.cosine(one, zero) == 0.0
    assert metrics.cosine(one, -one) == -1.0
    assert metrics.sqnr_db(one, endless) == metrics.psnr_db(one, endless) == -math.inf
    assert metrics.max_abs(one, endless) == math.inf
    with pytest.raises(UsageError, match="nothing was added"):
        ErrorSums().psnr_db()


def test_float16_does_not_overflow():
    r = np.full(10_000, 200.0, dtype=np.float16)
    assert metrics.sqnr_db(r, r + np.float16(2)) == pytest.approx(40.0, abs=0.01)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 1000))
def test_pieces_sum_to_the_whole(size, step, seed):
    rng = np.random.default_rng(seed)
    r, t = rng.normal(size=size).astype(np.float32), rng.normal(size=size).astype(np.float32)
    sums = ErrorSums()
    for i in range(0, size, step):
        sums.update(r[i : i + step], t[i : i + step])
    for name in ("sqnr_db", "relative_l2", "max_abs", "cosine", "psnr_db"):
        assert getattr(sums, name)() == pytest.approx(getattr(metrics, name)(r, t), rel=1e-9)
    assert -1.0 <= sums.cosine() <= 1.0


def test_luma_is_studio_range():
    colours = np.array([[[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    np.testing.assert_allclose(metrics.rgb_to_y(colours)[0] * 255, [16, 235, 81.481, 144.553, 40.966], atol=1e-9)
    with pytest.raises(UsageError, match="RGB in the last axis"):
        metrics.rgb_to_y(np.zeros((3, 8, 8)))


def test_uint8_rounds_half_up():
    assert metrics.to_uint8(np.array([-1, 0.5 / 255, 1.4999 / 255, 2.5 / 255, 2.0])).tolist() == [0, 1, 1, 3, 255]
    with pytest.raises(UsageError, match="NaN"):
        metrics.to_uint8(np.array([np.nan]))


def test_psnr_y_and_ssim_y_crop_and_quantize(photo):
    other = noisy(photo)
    framed = other.copy()
    framed[:2] = framed[-2:] = 0.0
    framed[:, :2] = framed[:, -2:] = 0.0
    assert metrics.psnr_y(photo, framed, 2) == metrics.psnr_y(photo, other, 2)
    assert metrics.psnr_y(photo, framed, 0) < metrics.psnr_y(photo, other, 0)
    assert metrics.psnr_y(metrics.to_uint8(photo), metrics.to_uint8(other), 2) == metrics.psnr_y(photo, other, 2)
    assert metrics.ssim_y(photo, framed, 2) == metrics.ssim_y(photo, other, 2)
    # One code value of grey moves Y by 219 / 255.
    grey = np.full((40, 40, 3), 100, np.uint8)
    assert metrics.psnr_y(grey, grey + np.uint8(1), 2) == pytest.approx(10 * math.log10(255**2 / (219 / 255) ** 2))
    assert math.isnan(metrics.psnr_y(photo, photo * np.nan, 2))
    assert math.isnan(metrics.ssim_y(photo, photo * np.nan, 2))
    with pytest.raises(UsageError, match="larger than the border"):
        metrics.psnr_y(photo[:4], photo[:4], 2)


def test_ssim_of_a_window_is_its_formula():
    rng = np.random.default_rng(3)
    r, t = rng.random((11, 11)), rng.random((11, 11))
    x = np.arange(11) - 5
    w = np.exp(-(x**2) / 4.5)
    w = np.outer(w, w) / w.sum() ** 2
    mr, mt = (w * r).sum(), (w * t).sum()
    vr, vt, cov = (w * r * r).sum() - mr**2, (w * t * t).sum() - mt**2, (w * r * t).sum() - mr * mt
    expected = (2 * mr * mt + 1e-4) * (2 * cov + 9e-4) / ((mr**2 + mt**2 + 1e-4) * (vr + vt + 9e-4))
    assert metrics.ssim(r, t) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("figure, side", [(metrics.ssim, 10), (ms_ssim, 175), (gmsd, 5), (haarpsi, 15)])
def test_too_small_says_how_large(figure, side):
    small = np.zeros((side, 300, 3))
    with pytest.raises(UsageError, match=f"at least {side + 1} x {side + 1} px; got 300 x {side}"):
        figure(small, small)
    larger = np.random.default_rng(0).random((side + 1, side + 1, 3))
    assert figure(larger, larger) == pytest.approx(BEST[figure], abs=1e-9)


@pytest.mark.parametrize("figure", PERCEPTUAL)
def test_more_damage_is_worse_and_order_does_not_matter(figure, photo):
    for damage in (noisy, lambda image, s: gaussian_filter(image, (40 * s, 40 * s, 0))):
        values = [figure(photo, damage(photo, s)) for s in (0.01, 0.03, 0.1)]
        assert values == sorted(values, reverse=figure is not gmsd)
        assert figure(damage(photo, 0.03), photo) == pytest.approx(values[1])


def test_constant_images():
    grey, other = np.full((200, 200, 3), 0.5), np.full((200, 200, 3), 0.6)
    assert gmsd(grey, other) == pytest.approx(0.0, abs=0.01)
    assert haarpsi(grey, grey) == pytest.approx(1.0)
    assert 0.0 <= haarpsi(grey, other) <= 1.0
    assert 0.9 < ms_ssim(grey, other) < 1.0


# Computed once by piq 0.8.0 on these very arrays, rounded to uint8: an implementation that shares no code with ours.
PIQ = {
    ("ms_ssim", "noise"): 0.9159248,
    ("ms_ssim", "blur"): 0.9783220,
    ("gmsd", "noise"): 0.0507264,
    ("gmsd", "blur"): 0.0657382,
    ("haarpsi", "noise"): 0.8754687,
    ("haarpsi", "blur"): 0.8462498,
}


@pytest.mark.parametrize("figure", [ms_ssim, gmsd, haarpsi])
def test_against_another_implementation(figure, photo):
    for name, damaged in (("noise", noisy(photo)), ("blur", gaussian_filter(photo, (1.5, 1.5, 0)))):
        rounded = metrics.to_uint8(damaged) / 255.0
        assert figure(photo, rounded) == pytest.approx(PIQ[figure.__name__, name], abs=2e-5)
