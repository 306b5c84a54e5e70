"""A qemu that counts instructions: Debian's own has no plugins, so its source is built with them, user-mode emulation of ARM64 alone.

Needs a C compiler. Everything else (GLib, pkgconf, Meson, Ninja) is fetched beside it, without root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from f2i_runtime.debian import package_list, unpack, unpack_source
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import atomic_directory

PLUGIN = Path(__file__).with_name("instructions.c")
GLIB = ("libglib2.0-dev", "libglib2.0-0", "libpcre2-dev", "libpcre2-8-0", "pkgconf-bin", "libpkgconf3")
BUILD_TOOLS = ("meson==1.5.0", "pycotap==1.3.1", "ninja==1.13.0")
"""The first two as qemu's own ``pythondeps.toml`` names them."""
LIBRARIES = "usr/lib/x86_64-linux-gnu"
CONFIGURE = (
    "--target-list=aarch64-linux-user",
    "--enable-plugins",
    "--without-default-features",
    "--disable-install-blobs",
    "--disable-system",
    "--disable-tools",
    "--disable-docs",
    "--disable-debug-info",
    "--disable-werror",
)
Progress = Callable[[str, int, int], None]


def compiler() -> str | None:
    """The C compiler's path; None on a machine without."""
    return shutil.which(os.environ.get("CC", "cc"))


def build_qemu(suite: str, glib_suite: str, home: Path, progress: Progress) -> Path:
    """Build once into ``home/counting`` → that folder, with ``qemu-aarch64`` and ``instructions.so``.

    Raises ToolchainError with the log of a build that failed, UsageError when something cannot be fetched.
    """
    built, glib, tools = home / "counting", home / "glib", home / "build-tools"
    if built.exists():
        return built
    if not glib.exists():
        packages = package_list(glib_suite, "amd64")
        unpack([packages[name] for name in GLIB], glib, progress)
    log = home / "qemu-build.log"
    log.write_text("")
    if not tools.exists():
        with atomic_directory(tools) as staging:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(staging), *BUILD_TOOLS]
            _run("fetching Meson and Ninja", pip, home, {}, log)
    with atomic_directory(built) as staging, tempfile.TemporaryDirectory(dir=home) as folder:
        unpack_source(suite, "qemu", Path(folder))
        [source] = Path(folder).glob("qemu-*")
        _build(source, glib, tools, staging, log, progress)
    return built


def _build(source: Path, glib: Path, tools: Path, destination: Path, log: Path, progress: Progress) -> None:
    work = source.with_name("build")
    work.mkdir()
    environment = {
        "PYTHONPATH": str(tools),
        "PKG_CONFIG": str(glib / "usr/bin/pkgconf"),
        "PKG_CONFIG_LIBDIR": str(glib / LIBRARIES / "pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(glib),
        "LD_LIBRARY_PATH": str(glib / LIBRARIES),
    }
    ninja = str(tools / "bin" / "ninja")
    # Beside the program, for good: an rpath that libglib's own dependencies are found by too.
    rpath = f"--extra-ldflags=-Wl,--disable-new-dtags,-rpath,{glib / LIBRARIES}"
    command = [str(source / "configure"), f"--python={sys.executable}", f"--ninja={ninja}", rpath, *CONFIGURE]
    _run("configuring qemu", command, work, environment, log)
    _run("building qemu", [ninja, "qemu-aarch64"], work, environment, log, progress)
    headers = [str(source / "include" / "qemu"), str(glib / "usr/include/glib-2.0"), str(glib / LIBRARIES / "glib-2.0/include")]
    includes = [f"-I{h}" for h in headers]
    plugin = [compiler() or "cc", "-shared", "-fPIC", "-O2", *includes, str(PLUGIN), "-o", str(destination / "instructions.so")]
    _run("compiling the counter", plugin, work, {}, log)
    shutil.copy2(work / "qemu-aarch64", destination / "qemu-aarch64")


def _run(what: str, command: list[str], folder: Path, environment: dict[str, str], log: Path, progress: Progress = lambda *_: None) -> None:
    """One command, its words in the log. Ninja's ``[done/of]`` becomes progress."""
    everything, last = {**os.environ, **environment}, ""
    with (
        log.open("a") as words,
        subprocess.Popen(
            command, cwd=folder, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            words.write(line)
            last = line.strip() or last
            if at := re.match(r"\[(\d+)/(\d+)\]", line):
                progress(what, int(at[1]), int(at[2]))
    if process.returncode:
        raise ToolchainError(component="qemu", target="arm64", stage=what, reason=last or "it said nothing", log=log)
