"""What a converter is given and gives back. Only the requested target's module is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from f2i_runtime.bundle.manifest import Delegation
from f2i_runtime.errors import MissingPackageError, ToolchainError, UsageError
from f2i_runtime.hexagon.qnn_provider import find_wheel
from f2i_runtime.targets import CPU, HEXAGON, Target, Variant, check_accelerator, find_target, kind_of

if TYPE_CHECKING:
    from f2i_quantize.ptq.quantized import Quantized
    from f2i_quantize.rewrites.passes import Rewrite
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoweringRequest:
    """One component to lower: the rewritten module in float32 (for int8 its QDQ graph), example inputs, and where to write.

    ``reference`` holds the weights of the module as it was given, by name: those of ``module`` that are the same tensors need not be stored
    again. ``scratch`` is a folder that the precisions of one component and target share, for what they have in common.
    """

    component: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    output: str
    example: Sequence[Tensor]
    precision: str
    options: dict[str, str]
    path: Path
    scratch: Path
    reference: dict[str, Tensor] = field(default_factory=dict)
    palettes: dict[str, int] = field(default_factory=dict)
    """Maps the path of a layer to the bits of its weight's palette."""
    unquantized: nn.Module | None = None
    """The rewritten module that ``module`` is the QDQ graph of; None for float."""
    accelerator: str = CPU
    """One of the target's record's, with the chip where it is compiled for one: ``hexagon_sm8750``."""


@dataclass(frozen=True)
class Converter:
    """What a target's ``to_<target>.py`` offers, as its ``CONVERTER``."""

    lower: Callable[[LoweringRequest], Delegation]
    """Writes the artifact and returns the figures of its graph."""
    rewrites: tuple[Rewrite, ...]
    """What the graph is rewritten with, in order; it begins with :data:`f2i_quantize.rewrites.passes.EVERYWHERE`."""
    half_rewrites: tuple[Rewrite, ...] = ()
    """What it is rewritten with besides where it computes in half precision."""
    takes_folded_weights: bool = True
    """Whether it is given a QDQ graph with integer weights, or folds them itself."""
    runs_here: Callable[[Mapping[str, str], str], bool] = lambda _options, _accelerator: True
    """(Options, accelerator) of an artifact → whether this machine's engine can run it."""
    fit_quantization: Callable[[Quantized], Quantized] = lambda quantized: quantized
    """A checkpoint's quantization → the same for layers that this converter's own rewrites have put together, under the names that they have then."""
    size_tells: bool = True
    """Whether the size of a file shows that weights stayed float."""
    as_documented: Callable[[Path, Path], None] | None = None
    """(``.pt2`` program, file to write): the export that the target's own documentation shows."""


SIZE_MARGIN = 1.1
GRAPH_BYTES = 500
"""The most bytes that an operation takes in a file besides its tensors: for names, shapes and scales (measured: 150 to 450)."""


def check_target(target: str, precisions: Sequence[str], options: Mapping[str, str], accelerators: Sequence[str] = (CPU,)) -> Target:
    """Returns the target's record, after checking that it is known, installed, and takes these precisions, options and accelerators. Raises UsageError."""
    record = find_target(target)
    for accelerator in accelerators:
        check_accelerator(Variant(target, "", accelerator))
        if any(kind_of(name) == kind_of(accelerator) for name in record.on_delegate):
            raise UsageError(
                f"accelerator {accelerator!r} opens {target}'s artifacts for {CPU}, so there is nothing to export for it; export with --accelerator {CPU}, "
                f"and run f2i validate BUNDLE --accelerator {accelerator}"
            )
        _check_precisions(record.on(accelerator), target if accelerator == CPU else f"{target} on {accelerator}", precisions)
    for key, value in options.items():
        if key not in record.options or (record.options[key].values and value not in record.options[key].values):
            known = "; ".join(f"{k}={'|'.join(o.values)}" for k, o in record.options.items()) or "none"
            raise UsageError(f"option {key}={value} is unknown for {target}; it takes: {known}")
        for precision in precisions:
            record.options[key].check(key, value, precision)
    for accelerator in accelerators:
        if kind_of(accelerator) == HEXAGON:
            find_wheel()
        converter = record.on(accelerator).converter
        if not converter.installed():
            raise MissingPackageError(converter.package, f"export to {target}", converter.extra)
    return record


def _check_precisions(record: Target, what: str, precisions: Sequence[str]) -> None:
    for precision in precisions:
        if precision not in record.precisions:
            raise UsageError(
                f"precision {precision!r} is not available for {what}; it takes {', '.join(record.precisions)}. Nothing was exported"
            )


def load_converter(target: str, accelerator: str = CPU) -> Converter:
    """Returns a target's converter for an accelerator; imports its toolchain. Raises UsageError for an unknown target, MissingPackageError."""
    return cast("Converter", find_target(target).on(accelerator).converter.load(f"export to {target}").CONVERTER)


def lower(target: str, request: LoweringRequest) -> Delegation:
    """Lower one component with the target's own module and return the figures of the lowered graph."""
    return load_converter(target, request.accelerator).lower(request)


def check_size(component: str, target: str, stored: int, written: int, ops: int) -> None:
    """Raises ToolchainError where an int8 file weighs more than its tensors may: weights that stayed float are seen nowhere else.

    ``stored``: bytes of the tensors as the recipe wants them, ``written``: of the file, whose graph of ``ops`` operations is allowed for.
    """
    most = round(SIZE_MARGIN * stored) + GRAPH_BYTES * ops
    if written > most:
        reason = (
            f"the file has {written} bytes, expected at most {most} for {stored} bytes of tensors and {ops} ops: weights stayed in float"
        )
        raise ToolchainError(component=component, target=target, stage="size", reason=reason)


JsonDict = dict[str, Any]
