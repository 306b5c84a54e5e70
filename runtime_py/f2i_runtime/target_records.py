"""What a target's record is made of: the modules that lower and execute it, its options, and what is different on an accelerator that is compiled for ahead."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType

from f2i_runtime.errors import MissingPackageError, UsageError

CPU = "cpu"
"""The accelerator that every target has: XNNPACK, ONNX Runtime's CPU provider, Core ML's CPU."""
HEXAGON = "hexagon"
"""The NPU of Snapdragon chips. The accelerator of an artifact names the chip that it was compiled for, too: ``hexagon_sm8750``."""
GPU = "gpu"
"""A GPU, which opens the CPU's own artifact: nothing is compiled ahead. What computes names its arithmetic, too: see :data:`GPU_HALF`."""
GPU_FLOAT, GPU_HALF = "gpu_fp32", "gpu_fp16"
"""A GPU in float32, and in half precision, which is what a phone's GPU computes in unless it is told otherwise."""


def kind_of(accelerator: str) -> str:
    """Returns what kind of accelerator it is, without the chip or the arithmetic: ``hexagon`` for ``hexagon_sm8750``, ``gpu`` for ``gpu_fp16``."""
    return accelerator.partition("_")[0]


def chip_of(accelerator: str) -> str:
    """Returns the chip in the name of an accelerator that is compiled for ahead: ``sm8750`` for ``hexagon_sm8750``, nothing for ``cpu``."""
    return accelerator.partition("_")[2]


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
class OnChip:
    """What is different about a target on an accelerator whose artifacts are compiled ahead, for one chip each. The fields are those of :class:`Target`."""

    engine: Adapter
    converter: Adapter
    distributions: tuple[str, ...]
    engine_distributions: tuple[str, ...]
    precisions: tuple[str, ...]
    stand_in: str
    ram_factor: float
    suffix: str = ""
    """The suffix of an artifact's file where it is not the target's."""
    layers: Adapter | None = None
    program: DeviceProgram | None = None
    """What runs its artifacts on a device, where Python does not."""


@dataclass(frozen=True)
class Browser:
    """How a target's artifacts run on a page."""

    script: str
    """The page's module (in ``f2i_bench/devices/web/page``) whose ``start`` opens artifacts with the engine."""
    packages: tuple[str, ...]
    """The npm packages that it needs, the engine first; :data:`f2i_bench.devices.web.web_runtimes.PACKAGES` pins them."""
    threads_need: tuple[str, ...] = ()
    """What a browser must be able to do (fields of :class:`f2i_bench.core.protocol.BrowserFacts`) for the engine to have more than one thread."""


@dataclass(frozen=True)
class OnDelegate:
    """What is different about a target on an accelerator that opens the CPU's own artifact. The fields are those of :class:`Target`."""

    engine: Adapter
    engine_distributions: tuple[str, ...]
    stand_in: str
    native_if: Adapter
    asked: Adapter
    computes_half: bool = False


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
    """Their kinds: an accelerator that is compiled for ahead is asked for without its chip."""
    on_chip: MappingProxyType[str, OnChip] = field(default_factory=lambda: MappingProxyType({}))
    """Kind of accelerator → what is different there, for those that artifacts are compiled for ahead. See :meth:`on`."""
    on_delegate: MappingProxyType[str, OnDelegate] = field(default_factory=lambda: MappingProxyType({}))
    """Accelerator → what is different there, for those that open the CPU's own artifact. A bundle has no artifacts of their own; they are run when they are
    asked for by name or kind."""
    computes_half: bool = False
    """Whether every artifact is computed in half precision here, whatever its own: then one of float32 is judged by the limits of fp16."""
    asked: Adapter | None = None
    """``delegation(path, component=, inputs=, accelerator=)``: how much of an artifact is taken here, for what is known only when it is opened."""
    native_if: Adapter | None = None
    """``has_gpu()``: whether this machine has what computes natively; None where :data:`platforms` says it."""
    simulated: bool = False
    """Whether what computes here simulates a chip, seconds for a tile. Then few tiles are compared unless more are asked for."""
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
    browser: Browser | None = None
    """How a page runs it; None: no page does."""
    program: DeviceProgram | None = None
    """What runs it on a device where the Python runner does not."""

    def on(self, accelerator: str) -> Target:
        """Returns the record as it is on an accelerator: this one, or one whose engine, converter and limits are those of ``on_chip`` or ``on_delegate``."""
        opened = self.on_delegate.get(accelerator)
        if opened is not None:
            return self._delegated(opened)
        own = self.on_chip.get(kind_of(accelerator))
        if own is None:
            return self
        return replace(
            self,
            suffix=own.suffix or self.suffix,
            engine=own.engine,
            converter=own.converter,
            distributions=own.distributions,
            engine_distributions=own.engine_distributions,
            precisions=own.precisions,
            ram_factor=own.ram_factor,
            half_inside=True,
            simulated_sqnr_gap_db=1.0,
            platforms=(),
            stand_in=own.stand_in,
            simulated=True,
            layers=own.layers,
            profile=None,
            source=None,
            placement=None,
            arm64=None,
            browser=None,
            program=own.program,
        )

    @property
    def device_program(self) -> DeviceProgram | None:
        """The engine's own program that measures an artifact on a device; None where there is none."""
        return self.program or (self.arm64.program if self.arm64 else None)

    def judged_as(self, precision: str) -> str:
        """Returns the precision by whose limits an artifact is judged here: fp16 for a float32 one that is computed in half precision, else its own."""
        return "fp16" if self.computes_half and precision == "fp32" else precision

    def _delegated(self, own: OnDelegate) -> Target:
        return replace(
            self,
            engine=own.engine,
            engine_distributions=own.engine_distributions,
            half_inside=own.computes_half,
            computes_half=own.computes_half,
            simulated_sqnr_gap_db=1.0,
            platforms=("linux", "darwin"),
            native_if=own.native_if,
            asked=own.asked,
            stand_in=own.stand_in,
            simulated=True,
            layers=None,
            profile=None,
            arm64=None,
            browser=None,
        )

    def needs(self, options: Mapping[str, str]) -> str:
        """Returns what a device must have at least to run an artifact exported with ``options``, such as ``iOS 18``; empty where nothing is known."""
        found = [option.needs.get(options.get(name, option.default), "") for name, option in self.options.items()]
        return ", ".join(text for text in found if text)

    @property
    def native_here(self) -> bool:
        """Whether this machine runs the target's own engine, so that its times mean something."""
        if self.native_if is not None and not self.native_if.load(f"{self.label} on this machine").has_gpu():
            return False
        return sys.platform in self.platforms

    @property
    def engine_label(self) -> str:
        """What computes on this machine, for people."""
        return self.label if self.native_here else self.stand_in
