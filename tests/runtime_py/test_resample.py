"""Resizing: MATLAB's weights, from the formula and from properties that any error in them breaks."""

import numpy as np
import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.resample import resize, resize_axis, resize_matrix, resize_taps
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.integers(1, 60)
kernels = st.sampled_from(["cubic", "linear"])


@settings(deadline=None, max_examples=200)
@given(sizes, sizes, kernels, st.booleans())
def test_weights_sum_to_one_and_are_symmetric(n_in, n_out, kernel, antialias):
    matrix = resize_matrix(n_in, n_out, kernel=kernel, antialias=antialias)
    assert matrix.shape == (n_out, n_in)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    # Mirroring the input mirrors the output.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(sizes, sizes, kernels)
def test_matrix_taps_and_axis_agree(n_in, n_out, kernel):
    samples = np.random.default_rng(n_in).random((3, n_in))
    index, weight = resize_taps(n_in, n_out, kernel=kernel)
    assert index.min() >= 0
    assert index.max() < n_in
    np.testing.assert_allclose(
        resize_axis(samples, index, weight, axis=1), samples @ resize_matrix(n_in, n_out, kernel=kernel).T, atol=1e-12
    )


@pytest.mark.parametrize("kernel", ["cubic", "linear"])
@pytest.mark.parametrize("n_in, n_out", [(40, 80), (40, 120), (60, 30), (64, 37)])
def test_ramps_stay_ramps_inside(n_in, n_out, kernel):
    ramp = np.arange(n_in, dtype=np.float64)
    expected = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    inside = (expected > 4.5) & (expected < n_in - 5.5)
    np.testing.assert_allclose((resize_matrix(n_in, n_out, kernel=kernel) @ ramp)[inside], expected[inside], atol=0.1)
    if n_out % n_in == 0:
        np.testing.assert_allclose((resize_matrix(n_in, n_out, kernel=kernel) @ ramp)[inside], expected[inside], atol=1e-9)


def test_doubling_has_keys_weights():
    """Output samples lie a quarter pixel beside input ones: Keys' kernel at 1.75, 0.75, 0.25 and 1.25."""
    row = resize_matrix(8, 16)[8]
    np.testing.assert_allclose(row[2:6], [-0.0234375, 0.2265625, 0.8671875, -0.0703125], atol=1e-12)
    assert np.count_nonzero(row) == 4


def test_halving_is_antialiased():
    """imresize(x, 0.5): eight taps, the kernel stretched to twice its width."""
    row = resize_matrix(32, 16)[8]
    np.testing.assert_allclose(row[13:21] * 256, [-3, -9, 29, 111, 111, 29, -9, -3], atol=1e-9)
    plain = resize_matrix(32, 16, antialias=False)[8]
    np.testing.assert_allclose(plain[15:19], [-0.0625, 0.5625, 0.5625, -0.0625], atol=1e-12)


def test_edges_are_mirrored():
    row = resize_matrix(8, 16)[0]
    # Taps at -2, -1, 0, 1 fold to 1, 0, 0, 1.
    np.testing.assert_allclose(row[:2], [0.2265625 + 0.8671875, -0.0234375 - 0.0703125], atol=1e-12)
    np.testing.assert_allclose(resize_matrix(1, 5), 1.0)


def test_same_size_changes_nothing():
    image = np.random.default_rng(0).random((9, 7, 3)).astype(np.float32)
    assert np.array_equal(resize(image, 9, 7), image)


def test_images():
    image = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    doubled = resize(image, 40, 45)
    assert doubled.dtype == np.float32
    expected = np.einsum("yi,xj,ijc->yxc", resize_matrix(20, 40), resize_matrix(30, 45), image.astype(np.float64))
    np.testing.assert_allclose(doubled, expected, atol=1e-6)
    np.testing.assert_allclose(resize(image[..., 0].astype(np.float64), 40, 45), expected[..., 0], atol=1e-12)


def test_uint8_is_rounded_after_each_axis():
    step = np.zeros((8, 8), np.uint8)
    step[:, 4:] = 255
    doubled = resize(step, 16, 16)
    assert doubled.dtype == np.uint8
    exact = resize(step.astype(np.float64), 16, 16)
    assert exact.min() < 0 < 255 < exact.max()  # overshoot, which uint8 clips
    assert np.array_equal(doubled, np.floor(np.clip(exact, 0, 255) + 0.5))


def test_nonsense_is_refused():
    image = np.zeros((4, 4, 3), np.float32)
    with pytest.raises(UsageError, match="unknown resize kernel 'lanczos'"):
        resize(image, 8, 8, kernel="lanczos")
    with pytest.raises(UsageError, match="4 samples to 0"):
        resize(image, 0, 8)
    with pytest.raises(UsageError, match="int64"):
        resize(np.zeros((4, 4), np.int64), 8, 8)
    with pytest.raises(UsageError, match=r"\(2, 4, 4, 3\)"):
        resize(np.zeros((2, 4, 4, 3)), 8, 8)
