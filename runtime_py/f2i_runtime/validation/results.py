"""What ``f2i validate`` found, as typed records. JSON is these records; JUnit, Markdown, tables and pages are views of them, selected by fields.

Every row says its variant in three fields: ``target``, ``precision``, ``accelerator``. Numbers are finite or null: an error of exactly zero has no decibels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from f2i_runtime.records import Document, Record, VariantRow, read_document
from f2i_runtime.targets import Variant

SCHEMA = 2

Figure = Literal[
    "sqnr_db",
    "token_cosine",
    "simulated_sqnr_gap_db",
    "layers_not_int8",
    "layer_rel_l2",
    "changed_weights",
    "changed_attributes",
    "forced_rel_l2",
    "own_weights_rel_l2",
    "psnr_db",
    "seam_ratio",
    "psnr_y_drop_db",
    "ssim_y_drop",
    "engines_psnr_db",
    "repeat_max_abs",
    "finite_share",
    "output_std",
    "tiling_psnr_db",
]
"""What a gate can be about, by the name that its id and the JSON have."""


@dataclass(frozen=True)
class FigureKind:
    """How people call a figure, and whether a gate asks for at least its limit or for at most."""

    words: str
    at_least: bool = False


FIGURES: dict[Figure, FigureKind] = {
    "sqnr_db": FigureKind("SQNR dB", at_least=True),
    "token_cosine": FigureKind("token cosine", at_least=True),
    "simulated_sqnr_gap_db": FigureKind("SQNR dB away from its QDQ program's"),
    "layers_not_int8": FigureKind("layers that are not int8 in the artifact"),
    "layer_rel_l2": FigureKind("relative L2 of the worst layer"),
    "changed_weights": FigureKind("changed weights"),
    "changed_attributes": FigureKind("changed attributes"),
    "forced_rel_l2": FigureKind("relative L2 of the worst op by itself"),
    "own_weights_rel_l2": FigureKind("relative L2 to torch with its own weights"),
    "psnr_db": FigureKind("PSNR dB", at_least=True),
    "seam_ratio": FigureKind("seam ratio"),
    "psnr_y_drop_db": FigureKind("PSNR-Y drop dB"),
    "ssim_y_drop": FigureKind("SSIM-Y drop"),
    "engines_psnr_db": FigureKind("photo PSNR dB", at_least=True),
    "repeat_max_abs": FigureKind("difference between two runs"),
    "finite_share": FigureKind("share of finite values", at_least=True),
    "output_std": FigureKind("standard deviation of the output", at_least=True),
    "tiling_psnr_db": FigureKind("PSNR dB between two tilings", at_least=True),
}


@dataclass(frozen=True)
class Subject:
    """What a gate is about. Without a variant it is about the reference alone."""

    variant: Variant | None = None
    component: str | None = None
    image: str | None = None
    other: str | None = None
    """What the figure compares with, where that is another engine."""


class Gate(Record):
    """One figure and its limit. ``id`` is made of the other fields and is the same in every run: what changes from run to run is in ``detail``."""

    id: str
    target: str | None
    """Null, as are precision and accelerator, where the gate is about the reference alone."""
    precision: str | None
    accelerator: str | None
    component: str | None
    image: str | None
    other: str | None
    """The engine that the figure compares with: a target, or ``simulated`` for the QDQ programs."""
    figure: Figure
    value: float | None
    """Null where it is not finite: an infinite SQNR, which passes, or not a number, which fails."""
    limit: float
    at_least: bool
    """Whether the value must be at least the limit; otherwise at most."""
    passed: bool
    detail: str
    """Where the figure is worst, such as the name of a layer. Empty where there is nothing to add."""

    @property
    def variant(self) -> Variant | None:
        """The three fields as one value; None where the gate is about the reference alone."""
        if self.target is None or self.precision is None:
            return None
        return Variant(self.target, self.precision, self.accelerator or "cpu")


def gate(subject: Subject, figure: Figure, value: float | None, limit: float, detail: str = "") -> Gate:
    """Returns the gate of one figure. A figure that is not a number never passes; an infinite SQNR (equal outputs) does."""
    at_least = FIGURES[figure].at_least
    passed = value is not None and not math.isnan(value) and (value >= limit if at_least else value <= limit)
    variant = subject.variant
    parts = [str(variant) if variant else "reference", subject.component, subject.image, figure, subject.other and f"to {subject.other}"]
    return Gate(
        id=" ".join(part for part in parts if part),
        target=variant.target if variant else None,
        precision=variant.precision if variant else None,
        accelerator=variant.accelerator if variant else None,
        component=subject.component,
        image=subject.image,
        other=subject.other,
        figure=figure,
        value=finite(value),
        limit=limit,
        at_least=at_least,
        passed=passed,
        detail=detail,
    )


class ComponentRow(VariantRow):
    """One component's output against the reference's, over all tiles, each given the reference's own inputs."""

    component: str
    engine: str
    tiles: int
    sqnr_db: float | None
    rel_l2: float | None
    max_abs: float | None
    cosine: float | None


class LayerRow(VariantRow):
    """One int8 layer of an artifact, given what the QDQ program's layer was given. ``rel_l2`` is null where the artifact has no such int8 layer."""

    component: str
    layer: str
    op: str
    rel_l2: float | None


class PhotoRow(VariantRow):
    """One stitched crop of a photo against the reference's, and against the truth where there is one. Decibels are of values in [0, 1]."""

    image: str
    psnr_db: float | None
    psnr_db_to: dict[str, float | None] | None = None
    """For int8: the same to the QDQ programs (``simulated``) and to every engine that came before."""
    ssim: float | None
    psnr_y_hr: float | None = None
    ssim_y_hr: float | None = None
    st_lpips_hr: float | None = None
    """ST-LPIPS to the truth, a learned perceptual distance; null where its weights are not installed (the extra ``perceptual``)."""
    reference_psnr_y_hr: float | None = None
    reference_st_lpips_hr: float | None = None
    lr_consistency_db: float | None = None
    """PSNR over RGB of the output, made small again by bicubic, to the photo that was given: how far the output contradicts it."""
    seam_ratio: float | None
    seam_gradient_ratio: float | None
    latency_ratio: float | None
    """The engine's seconds per tile ÷ the reference's, in the process that measured both."""


class OpError(Record):
    """One op of a package beside its counterpart in the reference program."""

    op: str
    name: str
    where: str
    module: str
    node: str
    rel_l2: float | None
    magnitude: float | None
    reference_magnitude: float | None
    overflowed: int
    underflowed: int


class KeptOps(Record):
    """The fewest ops to keep in float32 so that a package reaches its gate, as ``--keep-fp32`` takes them."""

    ops: tuple[str, ...]
    before_db: float | None
    sqnr_db: float | None
    reached: bool


class ChangedAttribute(Record):
    """An attribute that is not what the program says. Both values are given as text."""

    where: str
    module: str
    attribute: str
    package: str
    reference: str


class BadOpRow(VariantRow):
    """Where one package's error begins: its worst op, and the first out of the expected band, by itself and in the running program."""

    component: str
    compared: int
    not_compared: int
    sqnr_db: float | None
    gate_db: float | None
    worst: OpError | None
    first: OpError | None
    first_accumulated: OpError | None
    keep_fp32: KeptOps | None
    changed_weights: tuple[str, ...]
    changed_attributes: tuple[ChangedAttribute, ...]


class Environment(Record):
    """Where and beside what it was measured."""

    machine: str
    python: str
    bundle: str
    reference: str
    """The engine of the full-precision reference."""
    tiling_psnr_db: float | None = None
    """The reference's own photo on two tilings; null where the photo has no room for a second one."""
    context_rel_l2: float | None = None
    """Relative L2 of the reference's output with a context of zeros to its output: how far the conditioning moves it. 0 where it does nothing."""
    simulated_sqnr_db: dict[str, dict[str, float | None]]
    """Precision → component → SQNR of the QDQ program that every engine's artifact was lowered from."""


class Report(Document):
    """One validation. Made by :func:`report_of`; read by :func:`read_report`."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    passed: bool
    components: tuple[ComponentRow, ...]
    layers: tuple[LayerRow, ...]
    photos: tuple[PhotoRow, ...]
    gates: tuple[Gate, ...]
    environment: Environment
    bad_ops: tuple[BadOpRow, ...] | None = None
    """Null where they were not asked for."""

    @model_validator(mode="after")
    def _consistent(self) -> Report:
        if self.passed != _passed(self.gates):
            raise ValueError(f"passed is {self.passed}, which is not what its gates say")
        repeated = [name for name, count in Counter(g.id for g in self.gates).items() if count > 1]
        if repeated:
            raise ValueError(f"two gates have the id {repeated[0]!r}")
        return self

    def variants(self) -> list[Variant]:
        """Returns every variant that was judged, in the order of the report."""
        return list(dict.fromkeys(row.variant for row in self.components))

    def failed(self) -> list[Gate]:
        """Returns the gates that failed."""
        return [g for g in self.gates if not g.passed]


@dataclass(frozen=True)
class Rows:
    """What a part of a validation found. Parts are added up with :func:`joined`."""

    components: tuple[ComponentRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    photos: tuple[PhotoRow, ...] = ()
    gates: tuple[Gate, ...] = ()
    bad_ops: tuple[BadOpRow, ...] | None = None


def joined(parts: Iterable[Rows]) -> Rows:
    """Returns the rows of all parts in their order. ``bad_ops`` is None where no part looked for them."""
    every = list(parts)
    looked = [p.bad_ops for p in every if p.bad_ops is not None]
    return Rows(
        components=tuple(row for p in every for row in p.components),
        layers=tuple(row for p in every for row in p.layers),
        photos=tuple(row for p in every for row in p.photos),
        gates=tuple(g for p in every for g in p.gates),
        bad_ops=tuple(row for found in looked for row in found) if looked else None,
    )


def report_of(rows: Rows, environment: Environment) -> Report:
    """Returns the report of these rows; a report without gates has proved nothing and does not pass."""
    return Report(
        passed=_passed(rows.gates),
        components=rows.components,
        layers=rows.layers,
        photos=rows.photos,
        gates=rows.gates,
        environment=environment,
        bad_ops=rows.bad_ops,
    )


def read_report(path: Path) -> Report:
    """Returns the report that ``f2i validate --json`` wrote. Raises UsageError with one line."""
    return read_document(path, Report, "f2i validate --json")


def finite(value: float | None) -> float | None:
    """Returns the value as a float, or None where it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _passed(gates: Iterable[Gate]) -> bool:
    every = list(gates)
    return bool(every) and all(g.passed for g in every)
