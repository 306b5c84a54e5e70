"""What a manifest says of an artifact that was compiled for a chip's NPU: for which, with what, and at what cost as far as the compiler says."""

from __future__ import annotations

from pydantic import Field

from f2i_runtime.records import Record


def source_line(htp: int) -> str:
    """Returns what every place that shows an estimate says of it."""
    return f"estimated by Qualcomm's compiler for Hexagon v{htp}, not measured"


class EstimatedTime(Record):
    """What the NPU's compiler expects: milliseconds between two bounds, and what makes them worth less. Nothing was run or measured."""

    ms: float = Field(ge=0)
    ms_lower: float = Field(ge=0)
    ms_upper: float = Field(ge=0)
    vtcm_spill_bytes: int = Field(ge=0)
    """What is written to DDR and read again, because the NPU's own fast memory (VTCM) was full."""
    uncosted_ops: int = Field(ge=0)
    """Ops that the compiler has no cost for. With any, the milliseconds are too low or wrong."""


class NpuEstimate(EstimatedTime):
    """One run of a component on another chip than the artifact's: the one that the compiler has cost tables for."""

    chip: str
    htp: int
    ddr_read_bytes: int = Field(ge=0)
    ddr_write_bytes: int = Field(ge=0)

    @property
    def source(self) -> str:
        """What stands beside every figure of it."""
        return source_line(self.htp)


class NpuRecord(Record):
    """What an artifact was compiled for, with what, and at what cost as far as the compiler says."""

    chip: str
    htp: int
    """The generation of the chip's NPU."""
    vtcm_mb: int = Field(ge=1)
    """Its own fast memory."""
    compiler: str
    """The version that the compiler wrote into the artifact."""
    method: str = ""
    """The name by which an app calls the artifact, where the file has one of its own and not the usual one."""
    estimate: NpuEstimate | None = None
    estimate_fp16: NpuEstimate | None = None
    """The same component's in fp16, beside a precision of integers."""
