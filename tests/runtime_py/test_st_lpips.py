"""ST-LPIPS with the weights of its authors' package, beside figures that the package's own code gave for the same photos."""

import numpy as np
import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics import st_lpips as module
from f2i_runtime.metrics.st_lpips import st_lpips
from scipy.ndimage import gaussian_filter
from skimage import data


@pytest.fixture
def photo():
    return data.astronaut()[100:228, 150:300] / 255.0


def test_figures_are_those_of_the_authors_code(photo):
    noisy = np.clip(photo + np.random.default_rng(0).normal(0, 0.1, photo.shape), 0, 1)
    assert st_lpips(photo, noisy) == pytest.approx(0.4229101, abs=2e-6)
    assert st_lpips(photo, gaussian_filter(photo, (1, 1, 0))) == pytest.approx(0.1768423, abs=2e-6)
    assert st_lpips(photo, data.coffee()[100:228, 150:300] / 255.0) == pytest.approx(0.6718949, abs=2e-6)


def test_equal_photos_are_at_zero_and_a_shift_is_less_than_a_blur(photo):
    assert st_lpips(photo, photo) == 0.0
    whole = data.astronaut() / 255.0
    assert st_lpips(photo, whole[101:229, 150:300]) < 0.5 * st_lpips(photo, gaussian_filter(photo, (2, 2, 0)))
    assert np.isnan(st_lpips(photo, np.where(photo > 0.9, np.nan, photo)))


def test_without_the_weights_there_is_no_figure(photo, monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "a_package_that_nobody_has")
    assert st_lpips(photo, photo) is None


@pytest.mark.parametrize("shapes", [((16, 64, 3), (16, 64, 3)), ((64, 64, 3), (64, 66, 3)), ((64, 64), (64, 64))])
def test_what_it_cannot_compare_is_refused(shapes):
    with pytest.raises(UsageError, match="shape"):
        st_lpips(*(np.zeros(shape) for shape in shapes))
