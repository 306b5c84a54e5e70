"""What ``f2i export`` is asked for, and what of it can be checked before the checkpoint is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from f2i_runtime.bundle.manifest import STATIC
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import targets

from f2i_export.lowering import check_target


@dataclass(frozen=True)
class ExportOptions:
    """What to export. ``tile`` 0 takes the checkpoint's own.

    ``overlap`` None is a sixteenth of the tile (an eighth with int8 activations), ``auto`` the least that meets the seam gate; ``parallel`` 0 runs one job per
    core, as far as memory allows.
    """

    checkpoint: str
    out: Path
    targets: tuple[str, ...] = field(default_factory=lambda: tuple(targets()))
    precisions: tuple[str, ...] = ("fp16",)
    tile: int = 0
    overlap: int | Literal["auto"] | None = None
    parallel: int = 0
    options: tuple[tuple[str, str], ...] = ()


def check_request(options: ExportOptions) -> None:
    """Raises UsageError for a target, a precision or an option that is not known, MissingPackageError for a target whose converter is not installed."""
    if not options.targets or not options.precisions:
        raise UsageError("nothing to export: name at least one target and one precision")
    for target in options.targets:
        own = {key: value for key, value in options.options if target in takers(key)}
        check_target(target, options.precisions, own)
    for key, value in options.options:
        if not set(takers(key)) & set(options.targets):
            raise UsageError(f"option {key}={value} is for {' and '.join(takers(key)) or 'no target'}, got {', '.join(options.targets)}")


def takers(option: str) -> list[str]:
    """Returns the targets that take an option."""
    return [name for name, line in targets().items() if option in line.options]


def own_options(options: ExportOptions, component: str, target: str, precision: str) -> tuple[tuple[str, str], ...]:
    """Returns the options that shape one artifact; operations to keep in float32 are an fp16 artifact's own."""
    own = {key: value for key, value in options.options if target in takers(key)}
    kept = own.pop("keep_fp32", "")
    if kept and precision == "fp16":
        mine = "auto" if kept == "auto" else ",".join(item for item in kept.split(",") if item.startswith(f"{component}:"))
        own |= {"keep_fp32": mine} if mine else {}
    return tuple(own.items())


def check_kept(options: ExportOptions, components: tuple[str, ...]) -> None:
    """Raises UsageError unless operations to keep in float32 are asked for an fp16 export and name one of ``components``."""
    kept = dict(options.options).get("keep_fp32", "auto")
    if "keep_fp32" in dict(options.options) and "fp16" not in options.precisions:
        raise UsageError(f"--keep-fp32 applies to fp16, got {', '.join(options.precisions)}; add --precision fp16")
    for item in [] if kept == "auto" else kept.split(","):
        component, _, operation = item.partition(":")
        if component not in components or not operation:
            raise UsageError(f"--keep-fp32: got {item!r}, expected auto or COMPONENT:OP with a component of {', '.join(components)}")


def chosen_overlap(options: ExportOptions, tile: int) -> int:
    """Returns the overlap asked for, or a sixteenth of the tile; an eighth where activations are int8, whose rounding is worst at a tile's edge.

    Raises UsageError unless it is below half the tile.
    """
    usual = tile // (8 if set(STATIC) & set(options.precisions) else 16)
    if options.overlap is None or options.overlap == "auto":
        return usual
    if options.overlap < 0 or options.overlap * 2 >= tile:
        raise UsageError(f"overlap {options.overlap} does not fit a tile of {tile}; use --overlap {usual}")
    return options.overlap
