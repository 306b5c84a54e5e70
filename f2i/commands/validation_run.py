"""What ``f2i validate`` does: it validates a bundle here or on a cluster, and writes the reports that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from f2i_bench.core.protocol import read_bench
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import write_json, write_text
from f2i_runtime.validation.results import Report
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions

from f2i.result_views import junit


@dataclass(frozen=True)
class ValidationOutputs:
    """The files to write: JSON, JUnit XML and an offline page. ``bench`` is what ``f2i bench --json`` wrote, for the page to show."""

    json: Path | None = None
    junit: Path | None = None
    html: Path | None = None
    bench: Path | None = None


def run_validation(
    bundle: Bundle,
    options: ValidateOptions,
    outputs: ValidationOutputs,
    ray: str | None,
    command: list[str],
    progress: Callable[[str, int, int], None],
) -> Report:
    """Validates the bundle and writes the files. ``ray`` is a cluster's address, ``command`` the command line that the page repeats.

    Raises UsageError for options that exclude one another.
    """
    if options.ground_truth is not None and options.images is None:
        raise UsageError("--ground-truth needs --images: the low-resolution photos of the same names")
    if ray and outputs.html:
        raise UsageError("--html needs the pictures of this process: write --json on the cluster, or leave out --ray")
    measured = read_bench(outputs.bench) if outputs.bench else None
    pictures = None
    if outputs.html:
        from f2i.report.images import ReportImages

        pictures = ReportImages()
    show = pictures.collect if pictures else lambda _: None
    if ray:
        from f2i_runtime.validation.validate_on_ray import validate_on_ray

        report = validate_on_ray(bundle.root.absolute(), options, ray, progress)
    else:
        report = validate(bundle, options, progress, show)
    if outputs.json:
        write_json(outputs.json, report.as_json())
    if outputs.junit:
        write_text(outputs.junit, junit(report))
    if outputs.html and pictures:
        from f2i.report.page import write_report

        write_report(outputs.html, bundle, report, pictures, command=command, bench=measured)
    return report
