"""``f2i validate`` on a Ray cluster: every variant of the bundle is judged in a process of its own, with its own reference.

The bundle and the photos must be at the same paths on every node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import F2IError
from f2i_runtime.ray_cluster import ray_cluster
from f2i_runtime.validation.validate import Report, ValidateOptions, chosen_variants, validate


def validate_on_ray(root: Path, options: ValidateOptions, address: str, progress: Callable[[str, int, int], None]) -> Report:
    """The report that :func:`f2i_runtime.validation.validate.validate` gives, its variants judged side by side, as many as the cluster has cores.

    A task whose process dies is done again, three times. Raises as ``validate``; MissingPackageError without Ray, ToolchainError when the cluster gives up.
    """
    variants = chosen_variants(open_bundle(root), options)
    found: dict[int, Report] = {}
    with ray_cluster(address, command="f2i validate", target="all targets") as ray:
        task = ray.remote(num_cpus=max(1, options.threads), max_retries=3)(_one)
        flying = {task.remote(root, replace(options, target=t, precision=p)): k for k, (t, p) in enumerate(variants)}
        while flying:
            ready, _ = ray.wait(list(flying), num_returns=1)
            for reference in ready:
                result = ray.get(reference)
                if isinstance(result, F2IError):
                    raise result
                found[flying.pop(reference)] = result
                progress("variants", len(found), len(variants))
    return _merged([found[k] for k in range(len(variants))])


def _one(root: Path, options: ValidateOptions) -> Report | F2IError:
    """Errors on purpose come back as values: Ray would wrap them."""
    try:
        return validate(open_bundle(root), options)
    except F2IError as e:
        return e


def _merged(reports: list[Report]) -> Report:
    """One report in the order of the variants; what every task says of the reference is said once."""
    whole = Report(environment=reports[0].environment)
    for report in reports:
        whole.components += report.components
        whole.photos += report.photos
        whole.gates += [gate for gate in report.gates if gate not in whole.gates]
        if report.located is not None:
            whole.located = [*(whole.located or []), *report.located]
    return whole
