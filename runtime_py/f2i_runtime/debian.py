"""Debian packages unpacked into a folder, without root and without apt: programs for tests and emulation (qemu, adb, an ARM64 Python), and GPU drivers.

Also the source of one, to build what Debian's own build leaves out. Package lists are fetched from the mirror over HTTPS; everything is checked
against the SHA-256 that its list gives.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from f2i_runtime.errors import UsageError
from f2i_runtime.files import atomic_directory

MIRROR = "https://deb.debian.org/debian"
ARCHIVE = "https://snapshot.debian.org/archive/debian/20261127T000000Z"
"""Where a pinned package is once the mirror has a newer one."""
TIMEOUT = 120


@dataclass(frozen=True)
class Package:
    """One entry of a package list."""

    name: str
    version: str
    depends: tuple[str, ...]
    filename: str
    sha256: str


def package_list(suite: str, arch: str) -> dict[str, Package]:
    """The newest of every package in a suite's main section. Raises UsageError when the mirror cannot be reached."""
    packages: dict[str, Package] = {}
    for entry in lzma.decompress(_get(f"{MIRROR}/dists/{suite}/main/binary-{arch}/Packages.xz")).decode().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", entry, re.M))
        if "Package" not in fields:
            continue
        wanted = ", ".join(fields.get(k, "") for k in ("Pre-Depends", "Depends")).split(",")
        first = tuple(re.split(r"[\s(:|]", w.strip())[0] for w in wanted if w.strip())
        packages[fields["Package"]] = Package(fields["Package"], fields["Version"], first, fields["Filename"], fields["SHA256"])
    return packages


def closure(names: Sequence[str], lists: Sequence[dict[str, Package]], without: Sequence[str] = ()) -> list[Package]:
    """Packages and all they depend on (the first of alternatives); earlier lists win; ``without`` and what no list has is left out.

    Raises UsageError when a name that was asked for is in no list.
    """
    found: dict[str, Package] = {}
    queue = list(names)
    while queue:
        name = queue.pop(0)
        package = next((packages[name] for packages in lists if name in packages), None)
        if package is None:
            if name in names:
                raise UsageError(f"Debian's lists hold no package {name!r}; the mirror may have moved on to another release")
            continue
        if name in found or name in without:
            continue
        found[name] = package
        queue += package.depends
    return list(found.values())


def unpack(
    packages: Sequence[Package],
    destination: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    keep: Callable[[str], bool] = lambda _: True,
) -> None:
    """Download, check and unpack into a new folder, complete or absent. Maintainer scripts are not run.

    ``keep``: a member's path without the leading ``./`` → whether it is unpacked.
    """
    with atomic_directory(destination) as staging:
        for k, package in enumerate(packages):
            content = _checked(package.filename, package.sha256)
            with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_member(content, "data.tar.xz")))) as data:
                wanted = [member for member in data if keep(member.name.removeprefix("./"))]
                data.extractall(staging, wanted, filter="tar")
            progress("packages", k + 1, len(packages))


def unpack_source(suite: str, name: str, destination: Path) -> None:
    """The upstream source of a package, as the suite has it, into a folder that exists. Raises UsageError when the suite has none."""
    sources = lzma.decompress(_get(f"{MIRROR}/dists/{suite}/main/source/Sources.xz")).decode().split("\n\n")
    entries = [e for e in sources if f"\nPackage: {name}\n" in f"\n{e}\n"]
    found = re.search(r"^ ([0-9a-f]{64}) \d+ (\S+\.orig\.tar\.xz)$", entries[-1], re.M) if entries else None
    where = re.search(r"^Directory: (.*)$", entries[-1], re.M) if entries else None
    if not found or not where:
        raise UsageError(f"Debian's {suite} holds no source of {name!r}; the mirror may have moved on to another release")
    content = _checked(f"{where[1]}/{found[2]}", found[1])
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as data:
        data.extractall(destination, filter="tar")


def _checked(filename: str, sha256: str) -> bytes:
    try:
        content = _get(f"{MIRROR}/{filename}")
    except UsageError:
        content = _get(f"{ARCHIVE}/{filename}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UsageError(f"{filename}: SHA-256 is {digest[:12]}…, Debian's list says {sha256[:12]}…; try again")
    return content


def _member(archive: bytes, name: str) -> bytes:
    """A member of a Unix ``ar`` archive (what a .deb is)."""
    at = 8
    while at + 60 <= len(archive):
        member, size = archive[at : at + 16].decode().strip().rstrip("/"), int(archive[at + 48 : at + 58])
        if member == name:
            return archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise UsageError(f"a Debian package holds no {name}; its format has changed")


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return bytes(response.read())
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        raise UsageError(f"{url}: cannot be fetched: {e}; check the network and run the same command again") from e
