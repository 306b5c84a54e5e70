"""``f2i validate`` on a Ray cluster: every variant of the bundle is judged in a process of its own, with its own reference.

The bundle and the photos must be at the same paths on every node. Tasks give back their stitched crops, so that engines are compared with one another here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import F2IError
from f2i_runtime.ray_cluster import ray_cluster
from f2i_runtime.validation.results import Report
from f2i_runtime.validation.validate import Measured, assemble, measure
from f2i_runtime.validation.validate_options import ValidateOptions, chosen_variants


def validate_on_ray(root: Path, options: ValidateOptions, address: str, progress: Callable[[str, int, int], None]) -> Report:
    """Returns the report that :func:`f2i_runtime.validation.validate.validate` gives, its variants judged side by side, as many as the cluster has cores.

    A task whose process dies is done again, three times. Raises as ``validate``; MissingPackageError without Ray, ToolchainError when the cluster gives up.
    """
    bundle = open_bundle(root)
    variants = chosen_variants(bundle, options)
    found: dict[int, Measured] = {}
    with ray_cluster(address, command="f2i validate", target="all targets") as ray:
        task = ray.remote(num_cpus=max(1, options.threads), max_retries=3)(measure_alone)
        flying = {task.remote(root, replace(options, **v._asdict())): k for k, v in enumerate(variants)}
        while flying:
            ready, _ = ray.wait(list(flying), num_returns=1)
            for reference in ready:
                result = ray.get(reference)
                if isinstance(result, F2IError):
                    raise result
                found[flying.pop(reference)] = result
                progress("variants", len(found), len(variants))
    return assemble(bundle, [found[k] for k in range(len(variants))])


def measure_alone(root: Path, options: ValidateOptions) -> Measured | F2IError:
    """Returns what one task measured. Errors on purpose come back as values, because Ray would wrap them."""
    try:
        return measure(open_bundle(root), options, lambda *_: None, lambda _: None)
    except F2IError as e:
        return e
