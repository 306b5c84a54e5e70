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
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType
from typing import NamedTuple

from f2i_runtime.errors import MissingPackageError, UsageError

ENTRY_POINTS = "f2i_mobile.targets"
"""The entry-point group through which an installed package adds a target."""
CPU = "cpu"
"""The accelerator that every target has: XNNPACK, ONNX Runtime's CPU provider, Core ML's CPU."""
FLOAT = ("fp32", "fp16")
INT8 = ("w8a8", "w8a8-mixed")
PALETTES = ("p8", "p6", "p4")


class Variant(NamedTuple):
    """What a figure is about: a target, a precision, and what computes. As text ``tflite/w8a8``, or ``onnx/fp16/hexagon`` off the CPU."""

    target: str
    precision: str
    accelerator: str = CPU

    def __str__(self) -> str:
        return "/".join(self[:2] if self.accelerator == CPU else self)

    @property
    def folder(self) -> str:
        """Where a bundle keeps its artifacts: ``tflite/w8a8``, or ``onnx/fp16-hexagon`` off the CPU."""
        return f"{self.target}/{self.precision}" + ("" if self.accelerator == CPU else f"-{self.accelerator}")


@dataclass(frozen=True)
class Selection:
    """Which variants are meant. None: any."""

    target: str | None = None
    precision: str | None = None
    accelerator: str | None = None

    def takes(self, variant: Variant) -> bool:
        """Returns whether a variant is one of them."""
        wanted = (self.target, self.precision, self.accelerator)
        return all(want in (None, have) for want, have in zip(wanted, variant, strict=True))


EVERYTHING = Selection()


@dataclass(frozen=True)
class Adapter:
    """A module of ours (or of the package that adds the target), the package that it needs, and the extra that installs that package."""

    module: str
    package: str
    extra: str

    def installed(self) -> bool:
        """Returns whether the package can be imported; does not import it."""
        return importlib.util.find_spec(self.package) is not None

    def load(self, purpose: str) -> ModuleType:
        """Returns the module. Raises MissingPackageError, which says what ``purpose`` is and how to install the package."""
        if not self.installed():
            raise MissingPackageError(self.package, purpose, self.extra)
        return importlib.import_module(self.module)


@dataclass(frozen=True)
class Option:
    """An option of ``f2i export`` that a target takes."""

    values: tuple[str, ...] = ()
    """The values it may take; empty: any text."""
    precisions: tuple[str, ...] = ()
    """The precisions it applies to; empty: all."""
    per_component: bool = False
    """Whether its value is ``auto`` or a list ``COMPONENT:OP,…`` of which an artifact is given the items of its own component."""
    default: str = ""
    """The value that an artifact has where the option is not given."""
    needs: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Value → what a device must have at least to run the artifact, such as ``iOS 18``."""
    least: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Precision → the first of ``values``, which are in rising order, that it can be expressed for."""

    def check(self, name: str, value: str, precision: str) -> None:
        """Raises UsageError for a value that a precision needs more than."""
        least = self.least.get(precision)
        if least is not None and self.values.index(value) < self.values.index(least):
            raise UsageError(f"option {name}={value}: {precision} needs {self.needs.get(least, least)} or later; use --{name} {least}")


@dataclass(frozen=True)
class DeviceProgram:
    """An engine's own benchmark program, which needs no Python on the device."""

    name: str
    """The part of the program's file name that tells it from others."""
    module: str
    """It has ``PLAN``; see :class:`f2i_bench.devices.android.native_runners.Plan`."""


@dataclass(frozen=True)
class Arm64:
    """How a target's artifacts run on an ARM64 device."""

    wheels: tuple[str, ...]
    """The wheels that run them under emulation."""
    opener: str
    """The module whose ``open_model(path, threads)`` returns the engine's name and a function from inputs in calling order to the output. Its file travels
    to the device, so it imports nothing but the engine and numpy."""
    no_deps: bool = False
    """Whether pip is to leave out what the wheels depend on."""
    program: DeviceProgram | None = None


@dataclass(frozen=True)
class Target:
    """A way to a phone: what lowers a component, what executes it, what it can be asked, and how far it may be from the reference.

    ``engine``'s module has ``open_session`` (see :func:`f2i_runtime.engines.session.open_session`); ``converter``'s has ``CONVERTER`` (see
    :class:`f2i_export.lowering.Converter`). Optional questions name the module that answers them; None means that the target cannot be asked.
    """

    name: str
    label: str
    """Its name for people."""
    colour: tuple[str, str]
    """In charts, on a light and on a dark page: CSS colours."""
    suffix: str
    """The suffix of an artifact's file or folder."""
    engine: Adapter
    converter: Adapter
    distributions: tuple[str, ...]
    """The Python distributions whose versions shape an artifact."""
    engine_distributions: tuple[str, ...]
    """Those that execute it."""
    precisions: tuple[str, ...]
    accelerators: tuple[str, ...] = (CPU,)
    options: MappingProxyType[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    ram_factor: float = 4.0
    """``ram_factor`` × float32 weight bytes + ``ram_base_gib`` bounds the peak memory of a child that lowers a component (measured)."""
    ram_base_gib: float = 1.2
    half_inside: bool = False
    """Whether the quantized artifacts compute in float16 what they do not compute in integers."""
    simulated_sqnr_gap_db: float = 0.5
    """How far an int8 artifact's SQNR may be from that of the QDQ program it was lowered from."""
    rank: int = 100
    """The order of engines by speed where they run natively, the fastest first."""
    platforms: tuple[str, ...] = ("linux", "darwin", "win32")
    """Where its own engine computes, as in ``sys.platform``."""
    stand_in: str = ""
    """What computes on other platforms; its results are the target's, its times are not."""
    layers: Adapter | None = None
    """``layer_outputs(path, layers)``: what the artifact's own kernels make of each quantized layer's input."""
    profile: Adapter | None = None
    """``profile_ops(path, inputs, threads=)``: the engine's own profile of one run."""
    source: Adapter | None = None
    """``findings``, ``locate`` and ``describe``: the artifact beside the program it was converted from, which the bundle keeps."""
    placement: Adapter | None = None
    """``lint(path)``: the ops that are known to leave the accelerator, with the rule and its source."""
    arm64: Arm64 | None = None
    """How the Python runner opens it under ARM64 emulation and on Android; None: it does not run there."""

    def needs(self, options: Mapping[str, str]) -> str:
        """Returns what a device must have at least to run an artifact exported with ``options``, such as ``iOS 18``; empty where nothing is known."""
        found = [option.needs.get(options.get(name, option.default), "") for name, option in self.options.items()]
        return ", ".join(text for text in found if text)

    @property
    def native_here(self) -> bool:
        """Whether this machine runs the target's own engine, so that its times mean something."""
        return sys.platform in self.platforms

    @property
    def engine_label(self) -> str:
        """What computes on this machine, for people."""
        return self.label if self.native_here else self.stand_in


_COREML_ENGINE = "f2i_runtime.engines.run_coreml"
_TFLITE_ENGINE = "f2i_runtime.engines.run_tflite"
_ONNX_ENGINE = "f2i_runtime.engines.run_onnx"

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
        ram_factor=4.0,
        rank=1,
        layers=Adapter(_TFLITE_ENGINE, "ai_edge_litert", "run-tflite"),
        arm64=Arm64(
            ("ai-edge-litert==2.3.0", "numpy==2.4.6"),
            opener="f2i_bench.devices.run_litert",
            program=DeviceProgram("benchmark_model", "f2i_bench.devices.android.run_benchmark_model"),
        ),
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
        ram_factor=4.0,
        rank=3,
        layers=Adapter(_ONNX_ENGINE, "onnx", "onnx"),
        profile=Adapter(_ONNX_ENGINE, "onnxruntime", "run-onnx"),
        arm64=Arm64(
            ("onnxruntime==1.32.0", "numpy==2.4.6"),
            opener="f2i_bench.devices.run_onnxruntime",
            program=DeviceProgram("onnxruntime_perf_test", "f2i_bench.devices.android.run_onnxruntime_perf_test"),
        ),
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


def check_accelerator(variant: Variant) -> None:
    """Raises UsageError unless the variant's target has its accelerator."""
    have = (CPU,) if variant.target == REFERENCE.target else find_target(variant.target).accelerators
    if variant.accelerator not in have:
        raise UsageError(f"accelerator {variant.accelerator!r} is not available for {variant.target}; it has {', '.join(have)}")
