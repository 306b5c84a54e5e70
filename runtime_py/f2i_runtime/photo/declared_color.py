"""Colour that a file declares by code points or numbers instead of a profile: an ICC profile that says the same, or values in standard range.

Sources: ITU-T H.273 (code points), IEC 61966-2-1 (sRGB), ITU-R BT.2100 (PQ, HLG), BT.2408 (203 cd/m² for diffuse white), ICC.1:2022 (profiles).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["srgb", "bt709", "linear", "pq", "hlg"] | float
"""How stored values become light; a number is a gamma."""
Points = tuple[float, ...]
"""Chromaticities x, y of red, green, blue and white."""

_D65 = (0.3127, 0.3290)
PRIMARIES: dict[int, Points] = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),
}
"""By H.273's ColourPrimaries."""
_NAMES = {1: "BT.709", 9: "BT.2020", 12: "Display P3"}
TRANSFERS: dict[int, Transfer] = {
    1: "bt709",
    6: "bt709",
    14: "bt709",
    15: "bt709",
    4: 2.2,
    5: 2.8,
    8: "linear",
    13: "srgb",
    16: "pq",
    18: "hlg",
}
"""By H.273's TransferCharacteristics."""
ADOBE_RGB: Points = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65)
_WHITE_NITS, _KNEE = 203.0, 0.75
_HDR = ("pq", "hlg")


@dataclass(frozen=True)
class DeclaredColor:
    """What a file says about its colours; ``name`` is for people."""

    points: Points
    transfer: Transfer
    name: str

    @property
    def is_srgb(self) -> bool:
        """Whether it is what a file without any declaration is taken for. BT.709's curve is shown as sRGB's, as browsers do."""
        same = np.allclose(self.points, PRIMARIES[1], atol=0.005)
        gamma = isinstance(self.transfer, float) and abs(self.transfer - 2.2) < 0.02
        return bool(same) and (self.transfer in ("srgb", "bt709") or gamma)

    @property
    def has_srgb_primaries_only(self) -> bool:
        """Whether, once its values are in standard range, nothing is left to declare."""
        return self.is_hdr and bool(np.allclose(self.points, PRIMARIES[1], atol=0.005))

    @property
    def is_hdr(self) -> bool:
        """Whether its values reach above diffuse white."""
        return self.transfer in _HDR


def from_code_points(primaries: int, transfer: int) -> DeclaredColor | None:
    """Returns what nclx or cICP code points mean; unspecified ones (2) are sRGB's. None for ones that are not known."""
    points, curve = PRIMARIES.get(1 if primaries == 2 else primaries), TRANSFERS.get(13 if transfer == 2 else transfer)
    if points is None or curve is None:
        return None
    how = {"pq": " with PQ", "hlg": " with HLG"}.get(str(curve), "")
    return DeclaredColor(points, curve, f"{_NAMES.get(primaries, f'primaries {primaries}')}{how}")


def standard_range(color: DeclaredColor, samples: NDArray[Any], white: float) -> NDArray[np.float64]:
    """Returns sRGB-encoded values, 0 to ``white``, for PQ or HLG samples, 0 to ``white``.

    Diffuse white (203 cd/m²) comes out a little below ``white``; what is brighter is compressed above three quarters of it, per channel, and never clipped.
    """
    coded = np.clip(np.asarray(samples, dtype=np.float64) / white, 0.0, 1.0)
    if color.transfer == "pq":
        root = coded ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    else:
        scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        nits = 1000 * scene**1.2
    light = nits / _WHITE_NITS
    above = np.maximum(light - _KNEE, 0)
    light = np.minimum(light, _KNEE) + (1 - _KNEE) * above / (above + 1 - _KNEE)
    return white * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def icc_profile(color: DeclaredColor) -> bytes:
    """Returns an ICC profile (version 4.4, display, matrix and curves) of the colour; of PQ and HLG what :func:`standard_range` makes of them."""
    matrix, adaptation = _to_d50(color.points)
    curve = _curve("srgb" if color.is_hdr else color.transfer)
    tags = {
        b"desc": _text(f"{color.name} (declared by the photo)"),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": _xyz(_D50),
        b"chad": b"sf32" + bytes(4) + b"".join(_fixed(v) for v in adaptation.ravel()),
        **{name: _xyz(matrix[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value.ljust(-(-len(value) // 4) * 4, b"\0")
    header = struct.pack(
        ">I4sI4s4s4s6H4sIIIIIQI",
        at + len(data),
        b"\0\0\0\0",
        0x04400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        2026,
        1,
        1,
        0,
        0,
        0,
        b"acsp",
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    header += b"".join(_fixed(v) for v in _D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _to_d50(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(RGB to XYZ under D50, the adaptation that is part of it), float64 (3, 3) each."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in zip(points[::2], points[1::2], strict=True)]).T
    white = xyz[:, 3]
    rgb = xyz[:, :3] * np.linalg.solve(xyz[:, :3], white)
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD
    return adaptation @ rgb, adaptation


def _curve(transfer: Transfer) -> bytes:
    """A ``para`` element: y = (a x + b)^g from d up, c x below."""
    if transfer == "srgb":
        kind, values = 3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    elif transfer == "bt709":
        kind, values = 3, (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
    else:
        kind, values = 0, (1.0 if isinstance(transfer, str) else transfer,)  # type: ignore[assignment]
    return struct.pack(">4sIHH", b"para", 0, kind, 0) + b"".join(_fixed(v) for v in values)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(float(value) * 65536))


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(v) for v in values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(data), 28) + data
