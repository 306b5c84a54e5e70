"""Estimates of models on Hexagon: every component compiled in each precision, and what was compiled before taken from the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from f2i_export.hexagon.compile_child import CompileRequest, estimate_graph
from f2i_export.hexagon.compiler_profile import CompilerEstimate
from f2i_export.hexagon.kept_estimates import TOOLS, kept_estimate
from f2i_export.hexagon.watched_child import Limits
from f2i_runtime.bundle.npu_record import source_line
from f2i_runtime.errors import UsageError
from f2i_runtime.hexagon.chips import ESTIMATED, FLOAT16, Chip, chip_with_estimate
from f2i_runtime.hexagon.qnn_provider import find_wheel

from f2i_bench.npu.estimate_records import PRECISIONS, ComponentEstimate, EstimateReport, ModelEstimate, add_up
from f2i_bench.npu.subjects import Subject

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class EstimateOptions:
    """In which precisions, for which chip, and what a compilation may take."""

    precisions: tuple[str, ...] = (FLOAT16,)
    soc: str = ESTIMATED
    limits: Limits = field(default=Limits())


def check_options(options: EstimateOptions) -> Chip:
    """Returns the chip. Raises UsageError for a precision or a chip that cannot be estimated, MissingPackageError where the compiler is missing."""
    for precision in options.precisions:
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r} is not one that the NPU is estimated in; choose from {', '.join(PRECISIONS)}")
    if not options.precisions:
        raise UsageError(f"no precision is given; choose from {', '.join(PRECISIONS)}")
    chip = chip_with_estimate(options.soc)
    find_wheel()
    return chip


def estimate_models(
    subjects: Sequence[Subject], options: EstimateOptions, progress: Progress, qualities: dict[str, float] | None = None
) -> EstimateReport:
    """Returns the estimate of every subject in every precision. ``qualities``: dB by name, which stand before what a subject knows of itself.

    Raises what :func:`check_options` raises, and ToolchainError where the compiler refuses, fails, or exceeds its limits.
    """
    chip, known = check_options(options), qualities or {}
    steps = sum(len(s.parts) for s in subjects) * len(options.precisions)
    done, rows = 0, []
    progress("components compiled", 0, steps)
    for s in subjects:
        found: dict[str, list[ComponentEstimate]] = {precision: [] for precision in options.precisions}
        for name in s.parts:
            with tempfile.TemporaryDirectory(prefix="f2i-estimate-") as folder:
                graph = _Graph(s, name, Path(folder))
                for precision in options.precisions:
                    found[precision].append(_component(s, name, _estimate(graph, precision, chip, options.limits)))
                    done += 1
                    progress("components compiled", done, steps)
        quality = known.get(s.name, s.quality)
        rows += [_model(s, precision, tuple(found[precision]), quality) for precision in options.precisions]
    versions = {name: version(name) for name in TOOLS}
    return EstimateReport(source=source_line(chip.htp), chip=chip.name, htp=chip.htp, tool_versions=versions, models=tuple(rows))


class _Graph:
    """A part of a subject, whose file is written when the first precision needs it and shared by the others."""

    def __init__(self, subject: Subject, part: str, folder: Path) -> None:
        self.subject, self.part, self.folder = subject, part, folder
        self.written: tuple[Path, Path | None] | None = None

    def files(self) -> tuple[Path, Path | None]:
        """The graph, and its inputs on one tile."""
        if self.written is None:
            self.written = self.subject.write(self.part, self.folder)
        return self.written


def _estimate(graph: _Graph, precision: str, chip: Chip, limits: Limits) -> CompilerEstimate:
    """From the cache, or from the compiler and then into the cache; only then is the graph written."""

    def make() -> CompilerEstimate:
        model, sample = graph.files()
        label = f"{Path(graph.subject.name).stem}/{graph.part}"
        return estimate_graph(CompileRequest(label, model, precision, chip, sample, limits))

    return kept_estimate([graph.subject.content, graph.part, precision, chip.name], make)


def _component(subject: Subject, name: str, estimate: CompilerEstimate) -> ComponentEstimate:
    part = subject.parts[name]
    return ComponentEstimate(
        component=name,
        calls=part.calls,
        parameters=part.parameters,
        **estimate.milliseconds,
        ddr_read_bytes=estimate.read_bytes,
        ddr_write_bytes=estimate.write_bytes,
        vtcm_fill_bytes=estimate.fill_bytes,
        vtcm_spill_bytes=estimate.spill_bytes,
        uncosted_ops=estimate.uncosted,
        uncosted=estimate.uncosted_names,
    )


def _model(subject: Subject, precision: str, components: tuple[ComponentEstimate, ...], quality: float | None) -> ModelEstimate:
    cost = add_up(components)
    counts = [part.parameters for part in subject.parts.values()]
    return ModelEstimate(
        **cost.model_dump(),
        model=subject.name,
        precision=precision,
        tile=subject.tile,
        ms_per_megapixel=round(cost.ms / subject.tile**2 * 1e6, 3),
        parameters=None if None in counts else sum(count or 0 for count in counts),
        quality=quality,
        one_sample_scales=precision != FLOAT16,
        components=components,
    )
