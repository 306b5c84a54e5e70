"""What the variants of a bundle would cost on a phone's NPU: a tile and whole photos, from the estimates that its manifest holds. Nothing is run."""

from __future__ import annotations

from collections.abc import Sequence

from f2i_runtime.bundle.npu_record import EstimatedTime, NpuEstimate
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.pipeline import photo_plan
from f2i_runtime.records import Record, VariantRow
from f2i_runtime.targets import Variant
from pydantic import Field

from f2i_bench.host.photo_predictor import photo_size

PHOTOS = (12.0, 50.0, 200.0)
"""The megapixels of photos that are predicted: those of phones' cameras."""


class NpuPhoto(Record):
    """A whole photo in tiles on the NPU: the NPU's own time, without reading, copies, blending and writing."""

    megapixels: float
    tiles: int = Field(ge=1)
    seconds: float = Field(ge=0)


class NpuCost(VariantRow, EstimatedTime):
    """A variant that was compiled for an NPU: the estimates of its components added up, each as often as it runs for a tile."""

    chip: str
    """The chip that it was compiled for."""
    source: str
    """Who says the figures, of which chip, and that nothing was measured."""
    ms_fp16: float | None
    """The same model's in fp16, beside a precision of integers."""
    photos: tuple[NpuPhoto, ...]

    @property
    def slower_than_fp16(self) -> bool:
        """Whether integers cost more here than float16 does."""
        return self.ms_fp16 is not None and self.ms > self.ms_fp16


def npu_costs(bundle: Bundle, megapixels: Sequence[float] = PHOTOS) -> tuple[NpuCost, ...]:
    """Returns a row for every variant of the bundle of which each component has an estimate, in the manifest's order."""
    found = [_cost(bundle, variant, megapixels) for variant in bundle.manifest.variants()]
    return tuple(cost for cost in found if cost)


def npu_notes(costs: Sequence[NpuCost]) -> list[str]:
    """Returns what a reader of the figures must know, a line each: where integers are slower than float16, and where the compiler does not know."""
    notes = []
    for cost in costs:
        if cost.slower_than_fp16:
            notes.append(
                f"{cost.variant}: {cost.ms:.2f} ms for a tile, slower than fp16 with {cost.ms_fp16:.2f} ms on this NPU: norms and other float ops between "
                f"integers cost more than integers save ({cost.source})"
            )
        if cost.uncosted_ops:
            notes.append(f"{cost.variant}: {cost.uncosted_ops} ops have no cost, so {cost.ms:.2f} ms is too low or wrong ({cost.source})")
    return notes


def _cost(bundle: Bundle, variant: Variant, megapixels: Sequence[float]) -> NpuCost | None:
    calls = [call.component for call in bundle.manifest.dataflow]
    records = {a.component: a.delegation.npu for a in bundle.manifest.artifacts_of(variant)}
    found = [record for record in (records.get(component) for component in calls) if record and record.estimate]
    estimates = [record.estimate for record in found if record.estimate]
    if len(estimates) < len(calls):
        return None
    ms = _sum("ms", estimates)
    in_float = [record.estimate_fp16 for record in found if record.estimate_fp16]
    photos = []
    for size in megapixels:
        tiles = photo_plan(bundle, *photo_size(size)).count
        photos.append(NpuPhoto(megapixels=size, tiles=tiles, seconds=round(tiles * ms / 1000, 4)))
    return NpuCost(
        **variant._asdict(),
        chip=find_chip(found[0].chip).label,
        source=estimates[0].source,
        ms=ms,
        ms_lower=_sum("ms_lower", estimates),
        ms_upper=_sum("ms_upper", estimates),
        vtcm_spill_bytes=sum(e.vtcm_spill_bytes for e in estimates),
        uncosted_ops=sum(e.uncosted_ops for e in estimates),
        ms_fp16=_sum("ms", in_float) if len(in_float) == len(calls) else None,
        photos=tuple(photos),
    )


def _sum(field: str, estimates: Sequence[NpuEstimate]) -> float:
    return round(sum(getattr(estimate, field) for estimate in estimates), 6)
