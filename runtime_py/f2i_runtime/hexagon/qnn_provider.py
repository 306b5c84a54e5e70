"""ONNX Runtime's QNN provider, set up: whether the wheel is here and the right one, where its libraries and its licence lie, and its options for a chip.

The wheel holds Qualcomm's compiler. Its licence is Qualcomm's own; nothing of it is copied, stored or handed on by this project.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from f2i_runtime.errors import MissingPackageError, UsageError
from f2i_runtime.hexagon.chips import Chip

DISTRIBUTION, MODULE = "onnxruntime-qnn", "onnxruntime_qnn"
WHEEL_VERSION = "2.7.0"
"""The version that everything here was measured with; cost tables and numbers are the compiler's, so another version is refused."""
EXTRA = "hexagon"
PROVIDER = "QNNExecutionProvider"
PURPOSE = "compiling for Hexagon"


@dataclass(frozen=True)
class QnnWheel:
    """The installed wheel: the provider's library, the HTP backend (compiler and simulator), Qualcomm's licence, and the version."""

    provider: Path
    backend: Path
    licence: Path
    version: str


def find_wheel() -> QnnWheel:
    """Returns the installed wheel; loads none of its libraries.

    Raises UsageError on another system, Python or version of the wheel, MissingPackageError where it is not installed: one line each.
    """
    check_system(platform.system(), platform.machine(), sys.version_info[:2])
    if importlib.util.find_spec(MODULE) is None:
        raise MissingPackageError(DISTRIBUTION, PURPOSE, EXTRA)
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError as e:
        raise MissingPackageError(DISTRIBUTION, PURPOSE, EXTRA) from e
    if found != WHEEL_VERSION:
        raise UsageError(
            f"{DISTRIBUTION} {found} is installed, and this version works with {WHEEL_VERSION}; run: pip install 'f2i-mobile[{EXTRA}]'"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError("onnxruntime", PURPOSE, EXTRA)
    import onnxruntime_qnn

    folder = Path(onnxruntime_qnn.LIB_DIR_FULL_PATH)
    licence = folder / "Qualcomm_LICENSE.pdf"
    return QnnWheel(Path(onnxruntime_qnn.get_library_path()), Path(onnxruntime_qnn.get_qnn_htp_path()), licence, found)


def check_system(system: str, machine: str, python: tuple[int, ...]) -> None:
    """Raises UsageError unless Qualcomm's wheel exists for this system, processor and Python."""
    if (system, machine) != ("Linux", "x86_64"):
        raise UsageError(
            f"{PURPOSE} needs Linux on x86-64, because Qualcomm's compiler comes for it alone; this is {system} on {machine}. "
            "Use such a machine or a container on it"
        )
    if python < (3, 11):
        found = ".".join(str(part) for part in python)
        raise UsageError(
            f"{PURPOSE} needs Python 3.11 or later, because {DISTRIBUTION} does; this is {found}. Make an environment with 3.11"
        )


def licence_line(wheel: QnnWheel) -> str:
    """Returns what is said of the licence wherever the compiler is used."""
    return f"Qualcomm's compiler ({DISTRIBUTION} {wheel.version}) is used under Qualcomm's licence: {wheel.licence}"


def provider_options(backend: Path | str, chip: Chip) -> dict[str, str]:
    """Returns the provider's options for a chip: always with its model, because the default (v68) has no float16.

    Mode 3 is the compiler's most thorough; what it costs in time is little, and it is best on graphs that are in the right form.
    """
    return {
        "backend_path": str(backend),
        "soc_model": str(chip.soc_model),
        "htp_arch": str(chip.htp),
        "htp_graph_finalization_optimization_mode": "3",
        "offload_graph_io_quantization": "1",
    }


def register_provider(provider: Path | str) -> list[Any]:
    """Loads the provider's library into this process and returns its devices. Call it in a child: the compiler can crash, hang, or eat memory."""
    import onnxruntime

    onnxruntime.register_execution_provider_library(PROVIDER, str(provider))
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER][:1]
