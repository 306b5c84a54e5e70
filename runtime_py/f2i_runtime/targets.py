"""The export targets, one record each, and what a variant is. Everything that other code wants to know about a target it asks here.

A target is two files and one record: ``f2i_export/to_<target>.py`` lowers a component, ``f2i_runtime/engines/run_<target>.py`` executes what came of it, and
its record names both. A package outside this project adds a target with the same three things: it declares an entry point of the group
:data:`ENTRY_POINTS` whose object is the :class:`Target`, in its ``pyproject.toml``::

    [project.entry-points."f2i_mobile.targets"]
    mine = "my_package.my_target:TARGET"

Entry points are metadata of installed packages, so the child processes of an export and of a benchmark find the record too. They are read when
:func:`targets` is called first, never on import, and only the modules of a target that is used are imported.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import NamedTuple

from f2i_runtime.errors import UsageError
from f2i_runtime.target_records import (
    CPU,
    GPU,
    GPU_FLOAT,
    GPU_HALF,
    HEXAGON,
    Adapter,
    Arm64,
    Browser,
    DeviceProgram,
    OnChip,
    OnDelegate,
    Option,
    Target,
    chip_of,
    kind_of,
)

__all__ = [
    "CPU",
    "ENTRY_POINTS",
    "EVERYTHING",
    "FLOAT",
    "GPU",
    "GPU_FLOAT",
    "GPU_HALF",
    "HEXAGON",
    "INT8",
    "PALETTES",
    "REFERENCE",
    "REFERENCE_ENGINE",
    "TARGETS",
    "Adapter",
    "Arm64",
    "Browser",
    "DeviceProgram",
    "OnChip",
    "OnDelegate",
    "Option",
    "Selection",
    "Target",
    "Variant",
    "check_accelerator",
    "chip_of",
    "find_target",
    "kind_of",
    "opened_as",
    "stored_as",
    "target_of",
    "targets",
]

ENTRY_POINTS = "f2i_mobile.targets"
"""The entry-point group through which an installed package adds a target."""
FLOAT = ("fp32", "fp16")
INT8 = ("w8a8", "w8a8-mixed")
PALETTES = ("p8", "p6", "p4")


class Variant(NamedTuple):
    """What a figure is about: a target, a precision, and what computes.

    As text ``tflite/w8a8``, or ``onnx/fp16/hexagon_sm8750`` off the CPU: an accelerator that is compiled for ahead names its chip, and one that opens the
    CPU's artifact (``tflite/fp16/gpu_fp16``) its arithmetic.
    """

    target: str
    precision: str
    accelerator: str = CPU

    def __str__(self) -> str:
        return "/".join(self[:2] if self.accelerator == CPU else self)

    @property
    def folder(self) -> str:
        """Where a bundle keeps its artifacts: ``tflite/w8a8``, or ``onnx/fp16-hexagon_sm8750`` off the CPU."""
        return f"{self.target}/{self.precision}" + ("" if self.accelerator == CPU else f"-{self.accelerator}")


@dataclass(frozen=True)
class Selection:
    """Which variants are meant. None: any. An accelerator without a chip takes those of every chip, and ``gpu`` both arithmetics."""

    target: str | None = None
    precision: str | None = None
    accelerator: str | None = None

    def takes(self, variant: Variant) -> bool:
        """Returns whether a variant is one of them."""
        accelerators = (None, variant.accelerator, kind_of(variant.accelerator))
        return self.target in (None, variant.target) and self.precision in (None, variant.precision) and self.accelerator in accelerators


EVERYTHING = Selection()


_COREML_ENGINE = "f2i_runtime.engines.run_coreml"
_TFLITE_ENGINE = "f2i_runtime.engines.run_tflite"
_ONNX_ENGINE = "f2i_runtime.engines.run_onnx"

_QNN = "onnxruntime_qnn"
_SIMULATOR = "simulator (numerics only)"


def _hexagon(
    converter: Adapter, engine: Adapter, distributions: tuple[str, ...], precisions: tuple[str, ...], program: DeviceProgram
) -> MappingProxyType[str, OnChip]:
    """Returns what is different about a target on Hexagon: its modules, and what an artifact's content depends on besides the compiler.

    Whether the compiler is installed is asked wherever Hexagon is; the adapters name what a target needs besides.
    """
    own = OnChip(
        engine=replace(engine, module=f"f2i_runtime.engines.{engine.module}"),
        converter=replace(converter, module=f"f2i_export.hexagon.{converter.module}"),
        distributions=(*distributions, "onnxruntime-qnn"),
        engine_distributions=("onnxruntime-qnn",),
        precisions=precisions,
        stand_in=_SIMULATOR,
        ram_factor=8.0,
        program=replace(program, module=f"f2i_bench.devices.android.{program.module}"),
    )
    return MappingProxyType({HEXAGON: own})


def _gpu() -> MappingProxyType[str, OnDelegate]:
    """Returns what is different about LiteRT on a GPU: its delegate takes the same files, and computes in float32 or in half precision."""
    engine, drivers = "f2i_runtime.engines.run_gpu", "f2i_runtime.gpu.drivers"

    def own(half: bool) -> OnDelegate:
        return OnDelegate(
            engine=Adapter(engine, "ai_edge_litert", "run-tflite"),
            engine_distributions=("ai-edge-litert",),
            stand_in="software GPU (numerics only)",
            native_if=Adapter(drivers, "ai_edge_litert", "run-tflite"),
            asked=Adapter(engine, "ai_edge_litert", "run-tflite"),
            computes_half=half,
        )

    return MappingProxyType({GPU_FLOAT: own(half=False), GPU_HALF: own(half=True)})


_IOS = Option(
    values=("16", "17", "18"),
    default="18",
    needs=MappingProxyType({"16": "iOS 16 (macOS 13)", "17": "iOS 17 (macOS 14)", "18": "iOS 18 (macOS 15)"}),
    least=MappingProxyType(dict.fromkeys(("w8", *INT8), "17")),
)
"""The oldest system that a Core ML package runs on. The ops that round activations to int8 are of iOS 17, and so are int8 weights as the converter makes
them."""

TARGETS: dict[str, Target] = {
    "coreml": Target(
        name="coreml",
        label="Core ML",
        colour=("#2f74c0", "#63a5ee"),
        suffix=".mlpackage",
        engine=Adapter(_COREML_ENGINE, "coremltools", "run-coreml"),
        converter=Adapter("f2i_export.to_coreml", "coremltools", "coreml"),
        distributions=("coremltools", "torch"),
        engine_distributions=("coremltools", "torch"),
        precisions=(*FLOAT, "w8", *INT8, *PALETTES),
        options=MappingProxyType({"keep_fp32": Option(precisions=("fp16",), per_component=True), "split_above_mb": Option(), "ios": _IOS}),
        ram_factor=2.5,
        half_inside=True,
        simulated_sqnr_gap_db=1.0,
        rank=0,
        platforms=("darwin",),
        stand_in="evaluator of the saved program (numerics only)",
        source=Adapter("f2i_runtime.validation.coreml_findings", "coremltools", "run-coreml"),
        placement=Adapter(_COREML_ENGINE, "coremltools", "run-coreml"),
    ),
    "executorch": Target(
        name="executorch",
        label="ExecuTorch",
        colour=("#d55e00", "#ff8a3d"),
        suffix=".pte",
        engine=Adapter("f2i_runtime.engines.run_executorch", "executorch", "run-executorch"),
        converter=Adapter("f2i_export.to_executorch", "executorch", "executorch"),
        distributions=("executorch", "torch"),
        engine_distributions=("executorch", "torch"),
        precisions=(*FLOAT, *INT8),
        accelerators=(CPU, HEXAGON),
        on_chip=_hexagon(
            Adapter("to_delegate", "executorch", "executorch"),
            Adapter("run_delegate", "executorch", "run-executorch"),
            ("executorch", "onnx", "onnxscript", "onnxruntime", "torch"),
            ("fp16", "w8a8", "w8a16"),
            DeviceProgram("qnn_executor_runner", "run_qnn_executor_runner"),
        ),
        options=MappingProxyType(
            {"delegate": Option(values=("xnnpack", "coreml", "vulkan"), needs=MappingProxyType({"coreml": "iOS 18 (macOS 15)"}))}
        ),
        ram_factor=3.5,
        rank=2,
        # 1.4.1 wants torch 2.13, whose aarch64 build on PyPI needs CUDA; this pair runs the same files. The binding needs torch and numpy only.
        arm64=Arm64(
            ("executorch==1.0.1", "torch==2.9.1", "numpy==2.4.6", "typing-extensions", "sympy==1.14.0", "mpmath==1.3.0"),
            opener="f2i_bench.devices.run_executorch_binding",
            no_deps=True,
            program=DeviceProgram("executor_runner", "f2i_bench.devices.android.run_executor_runner"),
        ),
    ),
    "tflite": Target(
        name="tflite",
        label="LiteRT",
        colour=("#12936b", "#35c795"),
        suffix=".tflite",
        engine=Adapter(_TFLITE_ENGINE, "ai_edge_litert", "run-tflite"),
        converter=Adapter("f2i_export.to_tflite", "litert_torch", "tflite"),
        distributions=("litert-torch", "litert-converter", "ai-edge-quantizer", "torch"),
        engine_distributions=("ai-edge-litert",),
        precisions=(*FLOAT, *INT8),
        accelerators=(CPU, HEXAGON, GPU),
        on_chip=_hexagon(
            Adapter("to_dispatch", "litert_torch", "tflite"),
            Adapter("run_dispatch", "ai_edge_litert", "run-tflite"),
            ("litert-torch", "litert-converter", "ai-edge-litert", "torch"),
            ("fp16", "w8a8", "w8a16"),
            DeviceProgram("benchmark_model", "run_npu_benchmark_model"),
        ),
        on_delegate=_gpu(),
        ram_factor=4.0,
        rank=1,
        layers=Adapter(_TFLITE_ENGINE, "ai_edge_litert", "run-tflite"),
        arm64=Arm64(
            ("ai-edge-litert==2.3.0", "numpy==2.4.6"),
            opener="f2i_bench.devices.run_litert",
            program=DeviceProgram("benchmark_model", "f2i_bench.devices.android.run_benchmark_model"),
        ),
        browser=Browser("run_litert_js.js", ("@litertjs/core", "@litertjs/wasm-utils"), threads_need=("relaxed_simd",)),
    ),
    "onnx": Target(
        name="onnx",
        label="ONNX Runtime",
        colour=("#b5569a", "#e08bc6"),
        suffix=".onnx",
        engine=Adapter(_ONNX_ENGINE, "onnxruntime", "run-onnx"),
        converter=Adapter("f2i_export.to_onnx", "onnx", "onnx"),
        distributions=("onnx", "onnxscript", "torch"),
        engine_distributions=("onnxruntime",),
        precisions=(*FLOAT, "w8", *INT8, "w8a16"),
        accelerators=(CPU, HEXAGON),
        on_chip=_hexagon(
            Adapter("to_context", _QNN, HEXAGON),
            Adapter("run_context", _QNN, HEXAGON),
            ("onnx", "onnxscript", "onnxruntime", "torch"),
            ("fp16", "w8a8", "w8a16"),
            DeviceProgram("onnxruntime_perf_test", "run_npu_perf_test"),
        ),
        ram_factor=4.0,
        rank=3,
        layers=Adapter(_ONNX_ENGINE, "onnx", "onnx"),
        profile=Adapter(_ONNX_ENGINE, "onnxruntime", "run-onnx"),
        arm64=Arm64(
            ("onnxruntime==1.32.0", "numpy==2.4.6"),
            opener="f2i_bench.devices.run_onnxruntime",
            program=DeviceProgram("onnxruntime_perf_test", "f2i_bench.devices.android.run_onnxruntime_perf_test"),
        ),
        browser=Browser("run_onnxruntime_web.js", ("onnxruntime-web",)),
    ),
}
"""The targets of this project. Whoever lists or looks up targets uses :func:`targets` or :func:`find_target`, which know those of other packages too."""

REFERENCE_ENGINE = Adapter("f2i_runtime.engines.run_torch", "torch", "model")
"""What executes the full-precision reference, which is no export target."""
REFERENCE = Variant("torch", "fp32")
"""The full-precision reference. With another precision of its target: the QDQ programs that artifacts of that precision were lowered from."""


@functools.cache
def targets() -> MappingProxyType[str, Target]:
    """Returns every target that is known on this machine by its name: this project's, then those of installed packages by name.

    Raises UsageError for an entry point that cannot be loaded, is no :class:`Target`, or has a name that is taken.
    """
    found = dict(TARGETS)
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            record = point.load()
        except (ImportError, AttributeError) as e:
            raise UsageError(f"entry point {point.name} = {point.value} of {ENTRY_POINTS} cannot be loaded: {e}; mend or remove it") from e
        if not isinstance(record, Target) or record.name != point.name:
            raise UsageError(
                f"entry point {point.name} = {point.value} of {ENTRY_POINTS}: expected a Target of that name, got {record!r:.80}"
            )
        if record.name in found or record.name == REFERENCE.target:
            raise UsageError(f"entry point {point.name} = {point.value} of {ENTRY_POINTS}: the name is taken; choose another")
        found[record.name] = record
    return MappingProxyType(found)


def find_target(name: str) -> Target:
    """Returns the record of a target. Raises UsageError for a name that no target has."""
    if name in TARGETS:
        return TARGETS[name]
    record = targets().get(name)
    if record is None:
        raise UsageError(f"target {name!r} is unknown; choose from {', '.join(targets())}")
    return record


def target_of(variant: Variant) -> Target:
    """Returns the record of a variant's target as it is on the variant's accelerator. Raises UsageError for an unknown target."""
    return find_target(variant.target).on(variant.accelerator)


def opened_as(variant: Variant) -> tuple[Variant, ...]:
    """Returns the other variants that a stored one is opened as: the CPU's artifact on each accelerator that takes it."""
    known = targets().get(variant.target)
    if known is None or variant.accelerator != CPU:
        return ()
    return tuple(variant._replace(accelerator=accelerator) for accelerator in known.on_delegate)


def stored_as(variant: Variant) -> Variant:
    """Returns the variant whose artifacts a bundle holds for this one: the CPU's for an accelerator that opens them, else itself."""
    known = targets().get(variant.target)
    return variant._replace(accelerator=CPU) if known is not None and variant.accelerator in known.on_delegate else variant


def check_accelerator(variant: Variant) -> None:
    """Raises UsageError unless the variant's target has an accelerator of that kind."""
    have = (CPU,) if variant.target == REFERENCE.target else find_target(variant.target).accelerators
    if kind_of(variant.accelerator) not in have:
        raise UsageError(f"accelerator {variant.accelerator!r} is not available for {variant.target}; it has {', '.join(have)}")
