"""The one JSON schema of ``f2i estimate``, and how figures of components become figures of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from f2i_runtime.bundle.npu_record import EstimatedTime
from f2i_runtime.errors import UsageError
from f2i_runtime.hexagon.chips import FLOAT16
from f2i_runtime.records import Document
from f2i_runtime.text_files import read_text_file
from pydantic import Field, TypeAdapter, ValidationError

SCHEMA = 1
PRECISIONS = (FLOAT16, "w8a8", "w8a16")
"""What the NPU computes in."""


class Cost(EstimatedTime):
    """An estimate with the bytes between DDR and the NPU's own fast memory (VTCM)."""

    ddr_read_bytes: int = Field(ge=0)
    ddr_write_bytes: int = Field(ge=0)
    vtcm_fill_bytes: int = Field(ge=0)
    """The part of what is read that had been spilled before, because VTCM was full."""


class ComponentEstimate(Cost):
    """One run of one component."""

    component: str
    calls: int = Field(ge=1)
    """How often it runs for a tile."""
    parameters: int | None
    """Null for a graph that was given as a file."""
    uncosted: tuple[str, ...] = ()
    """The names of ops without a cost, where the compiler gives them."""


class ModelEstimate(Cost):
    """One model in one precision: its components added up, each as often as it runs for a tile."""

    model: str
    precision: str
    tile: int = Field(ge=1)
    """The side of the low-resolution tile in pixels."""
    ms_per_megapixel: float = Field(ge=0)
    """Milliseconds per million low-resolution pixels, in tiles that do not overlap."""
    parameters: int | None
    quality: float | None
    """PSNR in dB, where one is known."""
    one_sample_scales: bool
    """True for integer precisions: scales were found on one tile alone, because a graph's cost depends on its types and not on its numbers."""
    components: tuple[ComponentEstimate, ...]


class EstimateReport(Document):
    """What ``f2i estimate`` found."""

    schema_version: int = Field(default=SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    source: str
    """Who says it, and that it was not measured."""
    chip: str
    htp: int
    """The generation of the chip's NPU."""
    tool_versions: dict[str, str]
    models: tuple[ModelEstimate, ...]


def add_up(components: Sequence[ComponentEstimate]) -> Cost:
    """Returns the cost of a tile: every component's, as often as it runs."""

    def total(field: str) -> float:
        return sum(getattr(c, field) * c.calls for c in components)

    times = {field: round(total(field), 6) for field in ("ms", "ms_lower", "ms_upper")}
    counts = {
        field: int(total(field)) for field in ("ddr_read_bytes", "ddr_write_bytes", "vtcm_fill_bytes", "vtcm_spill_bytes", "uncosted_ops")
    }
    return Cost.model_validate(times | counts)


def read_qualities(path: Path) -> dict[str, float]:
    """Returns the quality of each model from a JSON file ``{"MODEL": dB, …}``. Raises UsageError for anything else."""
    try:
        return TypeAdapter(dict[str, float]).validate_json(read_text_file(path))
    except ValidationError as e:
        raise UsageError(f'{path}: {e.errors()[0]["msg"]}; expected a JSON object of models and dB, such as {{"nano": 37.2}}') from e
