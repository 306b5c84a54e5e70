"""The plan of an export: every job, made from the description of the checkpoint. No torch, and no weight is read but to hash its file once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from f2i_quantize.models import checkpoint_files
from f2i_quantize.models.description import Description, describe
from f2i_quantize.ptq.quantization_record import QuantizationRecord, read_record
from f2i_runtime.targets import FLOAT

from f2i_export.export_options import ExportOptions, check_components, check_request, chosen_overlap, own_options
from f2i_export.jobs import Job, job_source
from f2i_export.source_closure import SourceReader


@dataclass(frozen=True)
class ExportPlan:
    """Everything that is decided before the first child starts. Paths are absolute; nothing of the checkpoint is looked up again."""

    options: ExportOptions
    reference: Job
    jobs: tuple[Job, ...]
    overlap: int
    """In pixels; with ``auto`` what is used until the reference job has measured it."""
    description: Description
    quantizations: dict[str, QuantizationRecord]
    """By precision, for those that are not float."""

    def weight_bytes(self, job: Job) -> int:
        """Returns the size in float32 of what a job loads: one component, or the whole model."""
        parameters = self.description.parameters
        return 4 * (parameters[job.component] if job.component else sum(parameters.values()))


def plan_export(options: ExportOptions) -> ExportPlan:
    """Returns the plan. What can be known to be wrong with the request is found here; nothing is written.

    Raises UsageError, CheckpointError or MissingPackageError.
    """
    check_request(options)
    description = describe(options.checkpoint)
    tile = options.tile or description.config.tile
    description.geometry.tokens(tile)
    overlap = chosen_overlap(options, tile)
    check_components(options, tuple(description.parameters))
    source = str(Path(options.checkpoint).absolute()) if Path(options.checkpoint).exists() else options.checkpoint
    quantizations = {p: read_record(source, p) for p in options.precisions if p not in FLOAT}
    for record in quantizations.values():
        record.check_tensors()
    digest = checkpoint_files.checkpoint_sha256(source)
    measured = (("overlap", "auto"),) if options.overlap == "auto" else ()
    reference = Job("reference", source, digest, tile, options=measured, source=job_source())
    jobs = (*_simulations(reference, quantizations), *_lowerings(options, reference, quantizations, tuple(description.parameters)))
    return ExportPlan(options, reference, jobs, overlap, description, quantizations)


def _simulations(reference: Job, quantizations: dict[str, QuantizationRecord]) -> list[Job]:
    """One job for every precision with int8 weights."""
    checkpoint, digest, tile = reference.checkpoint, reference.checkpoint_sha256, reference.tile
    return [
        Job("simulate", checkpoint, digest, tile, precision=precision, quantization=record.sha256, source=reference.source)
        for precision, record in quantizations.items()
        if record.has_integers()
    ]


def _lowerings(
    options: ExportOptions, reference: Job, quantizations: dict[str, QuantizationRecord], components: tuple[str, ...]
) -> list[Job]:
    """One job for every component and variant; those of the UNet come first, since they take longest."""
    reader, accelerators = SourceReader(), options.every_accelerator
    sources = {(target, accelerator): job_source(target, reader, accelerator) for target in options.targets for accelerator in accelerators}
    return [
        Job(
            "lower",
            reference.checkpoint,
            reference.checkpoint_sha256,
            reference.tile,
            component,
            target,
            precision,
            own_options(options, component, target, precision),
            quantizations[precision].sha256 if precision in quantizations else "",
            accelerator,
            sources[target, accelerator],
        )
        for component in sorted(components, key=lambda name: name != "unet")
        for target in options.targets
        for precision in options.precisions
        for accelerator in accelerators
    ]
