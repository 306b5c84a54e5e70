"""The app's code against the bundle's golden vectors: the test that a native app writes too."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from app import upscale_tile

BUNDLE = Path(os.environ.get("BUNDLE", "bundle"))
LIMITS_DB = {"fp32": 80, "fp16": 40, "w8a8": 25}
ARTIFACTS = json.loads((BUNDLE / "manifest.json").read_text())["artifacts"]


@pytest.mark.parametrize("precision", sorted({a["precision"] for a in ARTIFACTS if a["target"] == "onnx"}))
def test_a_tile_equals_the_reference(precision):
    for case in sorted((BUNDLE / "golden").iterdir()):
        expected = np.load(case / "sr.npy")
        error = upscale_tile(BUNDLE, np.load(case / "lr.npy"), precision) - expected
        assert 10 * np.log10((expected**2).mean() / (error**2).mean()) > LIMITS_DB[precision]
