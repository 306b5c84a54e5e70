"""Core ML: an ML Program (``.mlpackage``) with float32 inputs and outputs, computing in fp16 or fp32."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
from f2i_quantize.rewrites.capture import capture
from f2i_quantize.rewrites.passes import EVERYWHERE, explicit_group_norm, scaled_group_norm
from f2i_runtime.bundle.manifest import CHUNKS, Delegation, Fallback, Gates
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.mil.judge.op_errors import base_name
from f2i_runtime.targets import find_target

from f2i_export.lowering import Converter, LoweringRequest

DEBUG_FILE = "executorch_debug_handle_mapping.json"
"""coremltools writes it beside what the manifest lists, for a debugger of ExecuTorch's; of an int8 package it is a twelfth."""
KEEP_MARGIN_DB = 1.0
"""How many dB above the gate ``keep_fp32=auto`` aims. It chooses on one tile, and the gate is measured on others."""


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.mlpackage) and the program it was converted from. Where each op runs is the device's decision: no share is given.

    The option ``keep_fp32`` names ops (``COMPONENT:OP,…``) that an fp16 program computes in float32; ``auto`` finds the fewest that bring the
    component above its gate on the example. With the option ``split_above_mb`` a package of more than that many MB becomes a folder of two, which compute it one
    after the other, and no program is kept beside it. With the option ``ios`` it runs on systems as old as that.
    Raises UsageError for an unknown op, ToolchainError when no choice of ops reaches the gate.
    """
    from f2i_runtime.mil.judge.source_program import save_source

    program = capture(request.module, request.example)
    option = request.options.get("keep_fp32", "")
    reason = "kept in fp32 on request"
    if option == "auto":
        kept, reason = _choose(request, program)
    else:
        kept = tuple(item.partition(":")[2] for item in option.split(",") if item)
    model, names = _convert(request, program, kept)
    for name in kept if option != "auto" else ():
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            meant = f"did you mean {', '.join(near)}?" if near else "f2i validate --find-bad-op names those that matter"
            raise UsageError(f"--keep-fp32: {request.component} has no op {name!r}; {meant}")
    kept = tuple(name for name in kept if name in names)  # a pass after the cast makes ops of its own, which follow their neighbours
    model.save(str(request.path))
    (request.path / DEBUG_FILE).unlink(missing_ok=True)
    limit = request.options.get("split_above_mb")
    if limit is not None and sum(f.stat().st_size for f in request.path.rglob("*") if f.is_file()) > int(limit) * 1_000_000:
        _split(request.path)
    else:
        save_source(program, request.path, request.reference)
    function = model._mil_program.functions["main"]
    operations = [op for op in function.operations if op.op_type != "const" and not op.op_type.startswith("constexpr_")]
    return Delegation(ops=len(operations), fallbacks=tuple(Fallback(op=name, reason=reason) for name in kept))


def _split(package: Path) -> None:
    """Two packages of about the same size in a folder ``<name>.chunks`` instead of ``package``; what one gives and the other takes has the same name in both."""
    with tempfile.TemporaryDirectory(dir=package.parent) as halves:
        ct.models.utils.bisect_model(str(package), halves, merge_chunks_to_pipeline=False, check_output_correctness=False)
        made = sorted(Path(halves).glob("*.mlpackage"))
        if len(made) != 2:
            raise RuntimeError(f"coremltools cut {package.name} into {len(made)} packages, expected 2")
        folder = package.with_suffix(CHUNKS)
        folder.mkdir()
        for number, half in enumerate(made, 1):
            half.rename(folder / f"chunk{number}.mlpackage")
    shutil.rmtree(package)


def _convert(request: LoweringRequest, program: Any, kept: tuple[str, ...]) -> tuple[Any, set[str]]:
    """Returns the converted model, and the names of the operations that a caller may keep in float32."""
    precision: Any = ct.precision.FLOAT32 if request.precision == "fp32" else ct.precision.FLOAT16
    seen: set[str] = set()

    def in_half(operation: Any) -> bool:
        seen.add(operation.name)
        return operation.name not in kept

    if kept:
        precision = ct.transform.FP16ComputePrecision(op_selector=in_half)
    model = ct.convert(
        program,
        inputs=[ct.TensorType(name=name, shape=shape) for name, shape in request.inputs.items()],
        outputs=[ct.TensorType(name=request.output)],
        convert_to="mlprogram",
        compute_precision=precision,
        minimum_deployment_target=getattr(ct.target, f"iOS{request.options.get('ios', find_target('coreml').options['ios'].default)}"),
        skip_model_load=True,
    )
    if request.palettes:
        model = _with_palettes(model, request.palettes, program)
    package: Any = model
    package.short_description = f"F2I {request.component}, {request.precision}"
    return model, seen


def _with_palettes(model: Any, bits: dict[str, int], program: Any) -> Any:
    """Each named layer's weight as indices into a table of 2^bits values, found by k-means over the whole tensor."""
    parameters = {item.target: item.arg.name for item in program.graph_signature.input_specs}
    operations = model._mil_program.functions["main"].operations
    held = {base_name(operation.name): operation.name for operation in operations if operation.op_type == "const"}
    names = {path: held.get(parameters.get(f"{path}.weight", "")) for path in bits}
    absent = sorted(path for path, name in names.items() if name is None)
    if absent:
        raise RuntimeError(f"{len(absent)} of {len(bits)} weights to palettize are not in the package, such as {absent[0]}.weight")
    configurations: Any = {names[path]: cto.OpPalettizerConfig(nbits=b, mode="kmeans", weight_threshold=0) for path, b in bits.items()}
    return cto.palettize_weights(model, cto.OptimizationConfig(op_name_configs=configurations))


def _choose(request: LoweringRequest, program: Any) -> tuple[tuple[str, ...], str]:
    """The fewest ops to keep in float32, found with the evaluator on the example, and what keeping them brings."""
    from f2i_runtime.mil.judge.find_bad_op import keep_fp32

    draft = request.scratch / f"{request.component}-draft.mlpackage"
    _convert(request, program, ())[0].save(str(draft))
    inputs = {name: tensor.detach().numpy() for name, tensor in zip(request.inputs, request.example, strict=True)}
    gate = Gates().component_sqnr_db["fp16"]
    found = keep_fp32(draft, program, inputs, gate_db=gate + KEEP_MARGIN_DB)
    if not found.reached:
        reason = (
            f"SQNR is {found.before_db:.1f} dB, with every op in fp32 {found.sqnr_db:.1f} dB, the gate is {gate} dB; export fp32 instead"
        )
        raise ToolchainError(component=request.component, target="coreml", stage="keep-fp32", reason=reason)
    return found.operations, f"kept in fp32: SQNR {found.before_db:.1f} dB becomes {found.sqnr_db:.1f} dB"


CONVERTER = Converter(lower, (*EVERYWHERE, explicit_group_norm), half_rewrites=(scaled_group_norm,))
"""Core ML has layer norm as an op of its own."""
