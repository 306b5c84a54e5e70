"""The app's code against the bundle's golden vectors: the test that a native app writes too."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from app import upscale_tile

BUNDLE = Path(os.environ.get("BUNDLE", "bundle"))


@pytest.mark.parametrize(("precision", "limit_db"), [("fp32", 80), ("fp16", 40)])
def test_a_tile_equals_the_reference(precision, limit_db):
    for case in sorted((BUNDLE / "golden").iterdir()):
        expected = np.load(case / "sr.npy")
        error = upscale_tile(BUNDLE, np.load(case / "lr.npy"), precision) - expected
        assert 10 * np.log10((expected**2).mean() / (error**2).mean()) > limit_db
