"""What an artifact's graph asks of an accelerator: the largest value in it, and the most axes, each with its place."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

HALF_LARGEST = 65504.0
"""The largest finite number of half precision (IEEE 754 binary16)."""
MARGIN = 4.0
"""Other photos may have values so many times larger than those of the golden tiles."""
MOST_AXES = 4
"""What GPU delegates and NPUs take."""


class GraphPlace(BaseModel):
    """An op of the program that was lowered, the module that it is in, and its value: a magnitude, or a number of axes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    where: str
    value: float = Field(ge=0)


class GraphRecord(BaseModel):
    """The largest magnitude of any intermediate value on the golden tiles in float32, and the most axes of any tensor. Older bundles have none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    largest: GraphPlace
    deepest: GraphPlace

    @property
    def fits_half(self) -> bool:
        """Whether every value stays inside half precision, with :data:`MARGIN`."""
        return self.largest.value * MARGIN <= HALF_LARGEST

    def findings(self) -> tuple[str, ...]:
        """Returns a line for each thing that an accelerator does not take: values that leave half precision, tensors of too many axes."""
        found = []
        if not self.fits_half:
            found.append(
                f"{self.largest.op} in {self.largest.where} reaches {self.largest.value:,.0f} on the golden tiles; with a margin of {MARGIN:g} "
                f"that leaves half precision, which ends at {HALF_LARGEST:,.0f}"
            )
        if self.deepest.value > MOST_AXES:
            found.append(
                f"{self.deepest.op} in {self.deepest.where} has {self.deepest.value:g} axes; GPU delegates and NPUs take {MOST_AXES}"
            )
        return tuple(found)
