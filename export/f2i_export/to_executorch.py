"""ExecuTorch: ``.pte`` through XNNPACK by default; Core ML and Vulkan delegates where the installed wheel can lower to them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack._passes as xnnpack_passes
import executorch.backends.xnnpack.xnnpack_preprocess as xnnpack_preprocess
import torch.fx.traceback
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from f2i_quantize.rewrites.capture import HalfInside, capture
from f2i_quantize.rewrites.passes import (
    EVERYWHERE,
    channel_group_norm,
    explicit_group_norm,
    explicit_layer_norm,
    explicit_silu,
    sigmoid_gelu,
)
from f2i_runtime.bundle.manifest import Delegation, Fallback
from f2i_runtime.errors import UsageError
from torch.fx import GraphModule

from f2i_export.lowering import Converter, LoweringRequest
from f2i_export.replaced_attribute import replaced

# XNNPACK runs a list of passes over every delegate, and each one traces the whole delegate again, also where none of its ops occurs: measured, half of
# all lowering time. The passes named here do nothing unless one of their ops is in the graph, so they are run only then.
PASS_NEEDS: dict[str, tuple[str, ...]] = {
    "ConvertToUpsampleBilinear2d": ("upsample", "index", "arange", "grid_sampler"),
    "ConvertToSDPAPass": ("scaled_dot_product", "any.dim", "logical_not", "where"),
    "FuseBatchNormPass": ("batch_norm",),
    "DecomposeBatchNorm": ("batch_norm",),
    "RemoveGetItemPass": ("max_pool", "max.dim", "min.dim"),
    "InsertPadQDQPass": ("quantize",),
    "Conv1dUnsqueezePass": ("conv",),
    "PReLUReshapePass": ("prelu",),
}


COREML_MINIMUM = "iOS18"
"""The oldest system that the Core ML delegate is built for; the target's record says so of the option ``delegate``."""


class _NoHistory(torch.fx.traceback.NodeSource):
    """Node provenance without the history of histories, which torch copies deeply at every trace of every node (a fifth of lowering time)."""

    def __init__(self, node: Any, pass_name: str = "", action: Any = None) -> None:
        super().__init__(None, pass_name, action)


class _NeededPasses(xnnpack_passes.XNNPACKPassManager):
    """XNNPACK's passes without those that have nothing to do in this delegate."""

    def __init__(self, exported_program: Any, passes: Any = None) -> None:
        super().__init__(exported_program, passes)
        nodes = [n for n in exported_program.graph.nodes if n.op == "call_function"]
        names = {str(getattr(n.target, "__name__", n.target)) for n in nodes}
        ranks = {n.meta["val"].dim() for n in nodes if "convolution" in str(getattr(n.target, "__name__", ""))}

        def needed(name: str) -> bool:
            if name == "Conv1dUnsqueezePass":
                return 3 in ranks
            words = PASS_NEEDS.get(name)
            return words is None or any(word in op for word in words for op in names)

        self.passes: list[Any] = [p for p in self.passes if needed(p.__name__)]


@contextlib.contextmanager
def lean_lowering() -> Iterator[None]:
    """Lowering without work that changes nothing; see :data:`PASS_NEEDS` and :class:`_NoHistory`. The program is the same."""
    with (
        replaced(torch.fx.traceback, "NodeSource", _NoHistory),
        replaced(xnnpack_preprocess, "XNNPACKPassManager", _NeededPasses),
    ):
        yield


class _Reasons(logging.Handler):
    """Collects the reasons that partitioners log for the nodes they leave out."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_node: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # WhyNoPartition logs: "WhyNoPartition: Node <name> was not partitioned because <reason>"
        head, found, reason = record.getMessage().partition(" was not partitioned because ")
        if found:
            self.by_node[head.rsplit(" ", 1)[-1]] = reason


@contextlib.contextmanager
def _recorded_reasons() -> Iterator[dict[str, str]]:
    handler = _Reasons()
    names = [n for n in logging.root.manager.loggerDict if n.startswith("executorch.backends.") and "partition" in n]
    loggers = [logging.getLogger(n) for n in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield handler.by_node
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.pte) and return how much of the graph the delegate took."""
    delegate = request.options.get("delegate", "xnnpack")
    # Core ML's own converter lowers the precision of a float32 program.
    module = HalfInside(request.module) if request.precision == "fp16" and delegate != "coreml" else request.module
    program = capture(module, request.example)
    partitioner = _partitioner(delegate, request.precision)
    with lean_lowering(), _recorded_reasons() as reasons:
        manager = to_edge_transform_and_lower(
            program, partitioner=[partitioner], compile_config=EdgeCompileConfig(_check_ir_validity=False)
        )
        delegation = _delegation(manager.exported_program().graph_module, reasons)
        executable = manager.to_executorch()
    with request.path.open("wb") as file:
        executable.write_to_file(file)
    return delegation


def _partitioner(delegate: str, precision: str) -> Any:
    if delegate == "xnnpack":
        return XnnpackPartitioner()
    if delegate == "coreml":
        try:
            import coremltools
            from executorch.backends.apple.coreml.compiler import CoreMLBackend
            from executorch.backends.apple.coreml.partition import CoreMLPartitioner
        except ImportError as e:
            raise UsageError(f"delegate coreml: it needs coremltools ({e}); install it with: pip install 'f2i-mobile[coreml]'") from e
        specs = CoreMLBackend.generate_compile_specs(
            minimum_deployment_target=getattr(coremltools.target, COREML_MINIMUM),
            compute_precision=coremltools.precision.FLOAT32 if precision == "fp32" else coremltools.precision.FLOAT16,
        )
        return CoreMLPartitioner(compile_specs=specs)
    try:
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
    except ImportError as e:
        raise UsageError(f"delegate vulkan: this ExecuTorch wheel cannot lower to Vulkan ({e}); use delegate=xnnpack") from e
    return VulkanPartitioner()


def _delegation(graph: GraphModule, reasons: dict[str, str]) -> Delegation:
    """Counts tensor ops inside delegates and outside; ``getitem`` and the delegate calls themselves are not ops."""
    inside = partitions = 0
    fallbacks: list[Fallback] = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or "getitem" in str(node.target):
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name == "executorch_call_delegate":
            partitions += 1
            lowered = getattr(graph, node.args[0].target)
            inside += sum(n.op == "call_function" and "getitem" not in str(n.target) for n in lowered.original_module.graph.nodes)
        else:
            fallbacks.append(Fallback(op=f"{name} ({node.name})", reason=reasons.get(node.name, "the delegate has no kernel for this op")))
    total = inside + len(fallbacks)
    return Delegation(ops=total, delegated_share=inside / total if total else None, partitions=partitions, fallbacks=tuple(fallbacks))


def export_as_documented(program: Path, destination: Path) -> None:
    """Lower a ``.pt2`` program as docs.pytorch.org, "Model Export and Lowering", shows, with nothing of ours."""
    lowered = to_edge_transform_and_lower(torch.export.load(program), partitioner=[XnnpackPartitioner()]).to_executorch()
    destination.write_bytes(lowered.buffer)


CONVERTER = Converter(
    lower,
    (*EVERYWHERE, explicit_group_norm, channel_group_norm, explicit_layer_norm, explicit_silu),
    half_rewrites=(sigmoid_gelu,),
    runs_here=lambda options, _: options.get("delegate", "xnnpack") == "xnnpack",
    as_documented=export_as_documented,
)
