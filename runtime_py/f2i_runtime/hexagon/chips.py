"""The chips whose NPU can be compiled for, by their model and marketing names."""

from __future__ import annotations

from dataclasses import dataclass

from f2i_runtime.errors import UsageError

FLOAT16 = "fp16"
"""The precision in which an NPU computes what is not in integers."""


@dataclass(frozen=True)
class Chip:
    """A system on a chip with a Hexagon NPU: the number that the compiler knows it by, and the generation of its NPU (HTP)."""

    name: str
    marketing: tuple[str, ...]
    soc_model: int
    htp: int
    vtcm_mb: int = 8
    """Megabytes of VTCM, the NPU's own fast memory."""
    has_estimate: bool = False
    """Whether the compiler has cost tables for it; for the others it says that estimates are unsupported."""

    @property
    def label(self) -> str:
        """The name for people: ``SA8255P (Hexagon v73)``."""
        return f"{self.name.upper()} (Hexagon v{self.htp})"

    @property
    def has_float16(self) -> bool:
        """Whether its NPU computes in float16; the first that does is v69."""
        return self.htp >= FLOAT16_SINCE


FLOAT16_SINCE = 69
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("sm8350", ("Snapdragon 888",), 30, 68, vtcm_mb=4),
        Chip("sm8450", ("Snapdragon 8 Gen 1",), 36, 69),
        Chip("sm8475", ("Snapdragon 8+ Gen 1",), 42, 69),
        Chip("sm8550", ("Snapdragon 8 Gen 2",), 43, 73),
        Chip("sm8650", ("Snapdragon 8 Gen 3",), 57, 75),
        Chip("sm8750", ("Snapdragon 8 Elite",), 69, 79),
        Chip("sm8850", ("Snapdragon 8 Elite Gen 5",), 87, 81),
        Chip("sa8255p", ("SA8255", "SA8775P", "Snapdragon Ride"), 52, 73, has_estimate=True),
        Chip("qcs9100", ("Dragonwing IQ-9100",), 77, 73, has_estimate=True),
    )
}
"""Numbers, generations and sizes of VTCM as ExecuTorch's table of QNN chips has them (``backends/qualcomm/serialization/qc_schema.py``)."""
DEFAULT = "sm8750"
"""The chip that is compiled for where none is named."""
ESTIMATED = "sa8255p"
"""The chip that estimates are made for unless another is asked: v73 is the generation of Snapdragon 8 Gen 2."""


def find_chip(name: str) -> Chip:
    """Returns the chip of that model or marketing name, whatever its case and spaces. Raises UsageError that lists those known."""
    wanted = _plain(name)
    for chip in CHIPS.values():
        if wanted in {_plain(other) for other in (chip.name, *chip.marketing)}:
            return chip
    known = "; ".join(f"{chip.name} ({', '.join(chip.marketing)})" for chip in CHIPS.values())
    raise UsageError(f"chip {name!r} is unknown; choose from {known}")


def check_float16(chip: Chip) -> None:
    """Raises UsageError for a chip whose NPU has no float16, which every graph of ours needs: integer ones, too, between their integers."""
    if not chip.has_float16:
        raise UsageError(
            f"{chip.label} has no float16, which norms and softmax are computed in at every precision; choose a chip of v{FLOAT16_SINCE} or later"
        )


def chip_with_estimate(name: str) -> Chip:
    """Returns the chip as :func:`find_chip` does. Raises UsageError where the compiler has no cost tables for it."""
    chip = find_chip(name)
    if not chip.has_estimate:
        known = ", ".join(c.name for c in CHIPS.values() if c.has_estimate)
        raise UsageError(f"{chip.label}: Qualcomm's compiler estimates nothing for this chip; choose from {known}")
    return chip


def _plain(name: str) -> str:
    return "".join(name.lower().split())
