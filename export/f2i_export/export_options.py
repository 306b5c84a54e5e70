"""What ``f2i export`` is asked for, and what of it can be checked before the checkpoint is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from f2i_runtime.bundle.manifest import STATIC
from f2i_runtime.errors import UsageError
from f2i_runtime.hexagon.chips import DEFAULT, check_float16, find_chip
from f2i_runtime.targets import CPU, HEXAGON, chip_of, find_target, kind_of, targets

from f2i_export.lowering import check_target

AUTO = "auto"
"""The value of an option by component that leaves the choice to the converter."""


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
    accelerators: tuple[str, ...] = (CPU,)
    """Each target is lowered to each of them."""
    socs: tuple[str, ...] = ()
    """The chips that artifacts for :data:`~f2i_runtime.targets.HEXAGON` are compiled for, by model or marketing name; none takes the default chip."""

    @property
    def every_accelerator(self) -> tuple[str, ...]:
        """The accelerators with their chips: ``hexagon`` becomes ``hexagon_sm8750`` and so on. Raises UsageError for an unknown chip."""
        chips = tuple(find_chip(soc).name for soc in self.socs or (DEFAULT,))
        found: list[str] = []
        for accelerator in self.accelerators:
            if kind_of(accelerator) != HEXAGON:
                found.append(accelerator)
            else:
                named = (find_chip(chip_of(accelerator)).name,) if chip_of(accelerator) else chips
                found += [f"{HEXAGON}_{chip}" for chip in named]
        return tuple(dict.fromkeys(found))


def check_request(options: ExportOptions) -> None:
    """Checks everything of a request but its checkpoint.

    Raises UsageError for a target, a precision, an accelerator or an option that is not known or does not apply, MissingPackageError for a target whose
    converter is not installed.
    """
    if not options.targets or not options.precisions or not options.accelerators:
        raise UsageError("nothing to export: name at least one target, one precision and one accelerator")
    accelerators = options.every_accelerator
    for accelerator in accelerators:
        if kind_of(accelerator) == HEXAGON:
            check_float16(find_chip(chip_of(accelerator)))
    if options.socs and HEXAGON not in options.accelerators:
        raise UsageError(f"--soc {','.join(options.socs)} is for the accelerator {HEXAGON}; add --accelerator {HEXAGON}")
    for target in options.targets:
        own = {key: value for key, value in options.options if target in takers(key)}
        check_target(target, options.precisions, own, accelerators)
    for key, value in options.options:
        if not set(takers(key)) & set(options.targets):
            raise UsageError(f"option {key}={value} is for {' and '.join(takers(key)) or 'no target'}, got {', '.join(options.targets)}")
        for target in takers(key):
            wanted = find_target(target).options[key].precisions
            if target in options.targets and wanted and not set(wanted) & set(options.precisions):
                raise UsageError(
                    f"{_flag(key)} applies to {', '.join(wanted)}, got {', '.join(options.precisions)}; add --precision {wanted[0]}"
                )


def takers(option: str) -> list[str]:
    """Returns the targets that take an option."""
    return [name for name, record in targets().items() if option in record.options]


def own_options(options: ExportOptions, component: str, target: str, precision: str) -> tuple[tuple[str, str], ...]:
    """Returns the options that shape one artifact: those that its target takes at its precision, and of a list by component its component's items."""
    own = []
    for key, value in options.options:
        option = find_target(target).options.get(key)
        if option is None or (option.precisions and precision not in option.precisions):
            continue
        mine = (
            [item for item in value.split(",") if item.startswith(f"{component}:")] if option.per_component and value != AUTO else [value]
        )
        if mine:
            own.append((key, ",".join(mine)))
    return tuple(own)


def check_components(options: ExportOptions, components: tuple[str, ...]) -> None:
    """Raises UsageError unless every item of an option that is a list by component names one of ``components``."""
    for key, value in options.options:
        if value == AUTO or not any(find_target(name).options[key].per_component for name in takers(key)):
            continue
        for item in value.split(","):
            component, _, operation = item.partition(":")
            if component not in components or not operation:
                expected = f"{AUTO} or COMPONENT:OP with a component of {', '.join(components)}"
                raise UsageError(f"{_flag(key)}: got {item!r}, expected {expected}")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


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
