"""Which Vulkan driver LiteRT's GPU delegate is given: the machine's own where it has a GPU, else one of two that compute in software.

SwiftShader computes in float32 only; lavapipe has half precision, as the GPUs of phones do. Both are fetched once, without root, and checked by hash
(:mod:`f2i_runtime.gpu.driver_packages`). Their numbers count; their times say nothing about any GPU.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from f2i_runtime.debian import unpack
from f2i_runtime.errors import UsageError
from f2i_runtime.gpu.driver_packages import LAVAPIPE, SWIFTSHADER, is_needed
from f2i_runtime.locks import exclusive_lock

CHOICE = "F2I_GPU"
"""The environment variable that, set to ``software``, leaves the machine's own GPU alone."""
DRIVERS_VERSION = "1"
"""Raised when the pinned packages change, so that old folders are left alone."""
ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
SOFTWARE = ("lvp", "llvmpipe", "swiftshader")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Driver:
    """What a child process needs to find a Vulkan driver."""

    name: str
    """For people: ``SwiftShader``, ``lavapipe``, or ``this machine's GPU``."""
    is_gpu: bool
    """Whether it drives a GPU, so that its times mean something."""
    environment: Mapping[str, str] = field(default_factory=dict)


def has_gpu() -> bool:
    """Returns whether this machine has a GPU and a driver for it: macOS always; Linux with a render device and a Vulkan driver other than Mesa's software."""
    if os.environ.get(CHOICE) == "software":
        return False
    if sys.platform == "darwin":
        return True
    devices = [*Path("/dev/dri").glob("renderD*"), *Path("/dev").glob("nvidia[0-9]*")]
    return sys.platform == "linux" and bool(devices) and ctypes.util.find_library("vulkan") is not None and bool(_installed())


def find_driver(half: bool, progress: Progress = lambda *_: None) -> Driver:
    """Returns the machine's own GPU where it has one, else the software driver for float32 or for half precision, fetched on first use.

    Raises UsageError where neither can be had: one line with what to install.
    """
    if has_gpu():
        return Driver("this machine's GPU", is_gpu=True)
    home = setup_drivers(progress)
    libraries = [str(home / "lavapipe" / folder / "x86_64-linux-gnu") for folder in ("usr/lib", "lib")]
    shared = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH", "")]))}
    manifest = str(home / ("lavapipe.json" if half else "swiftshader.json"))
    shared |= {"VK_DRIVER_FILES": manifest, "VK_ICD_FILENAMES": manifest, "MESA_SHADER_CACHE_DIR": str(home / "shaders")}
    return Driver("lavapipe" if half else "SwiftShader", is_gpu=False, environment=shared)


def setup_drivers(progress: Progress = lambda *_: None) -> Path:
    """Returns the folder of the software drivers, ``~/.cache/f2i/gpu-1``, after fetching what it lacks: 70 MB once.

    Raises UsageError on anything but Linux on x86-64, or when a download fails.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UsageError(
            f"software drivers for the GPU delegate are for Linux on x86-64, got {sys.platform} {platform.machine()}; "
            "install a Vulkan driver for this machine's GPU, or use --accelerator cpu"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "f2i" / f"gpu-{DRIVERS_VERSION}"
    with exclusive_lock(home.with_suffix(".lock"), busy="another run is setting up the GPU drivers; wait for it", wait=True):
        home.mkdir(parents=True, exist_ok=True)
        for name, packages, version in (("swiftshader", SWIFTSHADER, "1.0.5"), ("lavapipe", LAVAPIPE, "1.4.305")):
            if not (home / name).exists():
                unpack(packages, home / name, progress, is_needed)
            library = next((home / name).rglob("libvk_swiftshader.so" if name == "swiftshader" else "libvulkan_lvp.so"))
            icd = {"file_format_version": "1.0.0", "ICD": {"library_path": str(library), "api_version": version}}
            (home / f"{name}.json").write_text(json.dumps(icd))
    return home


def _installed() -> list[Path]:
    """Returns the manifests of Vulkan drivers that are installed, those without the software ones."""
    chosen = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if chosen:
        return [Path(part) for part in chosen.split(os.pathsep) if Path(part).is_file() and not _is_software(Path(part))]
    return [path for folder in ICD_FOLDERS for path in sorted(Path(folder).glob("*.json")) if not _is_software(path)]


def _is_software(path: Path) -> bool:
    return any(word in path.name.lower() for word in SOFTWARE)


def main() -> int:
    """Fetches the software drivers where this machine has no GPU, and says what will compute: what ``make gpu-setup`` runs."""
    names = dict.fromkeys(find_driver(half).name for half in (False, True))
    sys.stdout.write(f"LiteRT's GPU delegate computes on {' and '.join(names)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
