"""A bundle on disk: open it, find its files, check their hashes."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.bundle.manifest import Artifact, FileRecord, Manifest, parse_manifest
from f2i_runtime.errors import BundleError, UsageError
from f2i_runtime.files import FolderKind, is_litter, sha256_file
from f2i_runtime.hub_layout import stays_inside
from f2i_runtime.text_files import read_text_file

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A folder with a checked manifest. Files are looked up through the manifest only."""

    root: Path
    manifest: Manifest

    def path(self, relative: str) -> Path:
        """Returns the absolute path of a file or package of the bundle, by its own name also where it is a link into a hub's store.

        Raises BundleError when a link leads to another place.
        """
        path = self.root.resolve() / relative
        if not stays_inside(self.root, path):
            raise BundleError(f"{self.root / relative}: it leads outside the bundle; bundles hold no links to other places")
        return path

    def artifact_path(self, artifact: Artifact) -> Path:
        """Returns the path of an artifact after checking that each of its files is present and has the recorded size and hash.

        Raises BundleError, also for a file in the artifact's folder that the manifest does not list: an engine would open it.
        """
        for record in artifact.files:
            self.check(record)
        path, listed = self.path(artifact.path), {record.path for record in artifact.files}
        for name in _present(self, artifact.path):
            if name not in listed and (not is_litter(name) or (self.root / name).is_symlink()):
                raise BundleError(f"{self.root / name}: the manifest does not list it; remove it or export the bundle again")
        return path

    def check(self, record: FileRecord) -> Path:
        """Returns the path of a file after checking its size and SHA-256. Raises BundleError."""
        path = self.path(record.path)
        if not path.is_file():
            raise BundleError(f"{path}: missing; the manifest lists it. Copy the bundle again or export it again")
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(
                f"{path}: {size} bytes, expected {record.bytes}; the file was cut or changed. Copy the bundle again or export it again"
            )
        digest = sha256_file(path)
        if digest != record.sha256:
            raise BundleError(
                f"{path}: SHA-256 is {digest[:12]}…, expected {record.sha256[:12]}…; the file was changed. Copy the bundle again or export it again"
            )
        return path

    def constant(self, name: str) -> np.ndarray:
        """Returns a constant tensor of the dataflow, float32."""
        return load_array(self.check(self.manifest.constants[name]))


def open_bundle(root: Path) -> Bundle:
    """Reads a bundle's manifest. Raises BundleError when there is none or it is not valid."""
    path = root / MANIFEST
    if not root.exists():
        raise BundleError(f"{root}: no such folder; make a bundle with: f2i export CKPT --out {root}")
    if not path.is_file():
        raise BundleError(f"{root}: it holds no {MANIFEST}, so it is not a bundle; make one with: f2i export CKPT --out BUNDLE")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_MANIFEST_BYTES}")
    try:
        text = read_text_file(path)
    except UsageError as e:
        raise BundleError(str(e)) from e
    return Bundle(root, parse_manifest(text, str(path)))


def _listed_files(folder: Path) -> Sequence[str] | None:
    """The files of a bundle of any schema, as patterns; None for a folder that is none: many things have a ``manifest.json``."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return None
        data = json.loads(read_text_file(path))
    except (OSError, UsageError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not {"schema", "components", "artifacts"} <= data.keys():
        return None
    return [MANIFEST, *(glob.escape(name) for name in _recorded(data))]


def _recorded(value: Any) -> Iterator[str]:
    """The path of every file record in a manifest."""
    if isinstance(value, dict):
        if "sha256" in value and isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _recorded(item)


BUNDLE_FOLDER = FolderKind("a bundle", _listed_files)
"""What ``f2i export`` writes, and may replace."""


def litter(bundle: Bundle) -> list[str]:
    """Returns the files in a bundle's folder that the system put there, such as ``.DS_Store``; the manifest lists none of them."""
    known = {record.path for record in bundle.manifest.files()}
    return [name for name in _present(bundle) if is_litter(name) and name not in known and not (bundle.root / name).is_symlink()]


def _present(bundle: Bundle, folder: str = ".") -> list[str]:
    """The files and links below a folder of the bundle, by their paths in it."""
    inside = sorted((bundle.root / folder).rglob("*"))
    return [p.relative_to(bundle.root).as_posix() for p in inside if p.is_file() or p.is_symlink()]


def verify(bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> int:
    """Checks the size and hash of every file, and that the folder has no other but the system's own (:func:`litter`). Needs no engine.

    Returns the number of bytes read. Raises BundleError.
    """
    records = bundle.manifest.files()
    total = 0
    for done, record in enumerate(records):
        bundle.check(record)
        total += record.bytes
        if progress:
            progress(done + 1, len(records))
    known = {record.path for record in records} | {MANIFEST, *litter(bundle)}
    for name in _present(bundle):
        if name not in known:
            raise BundleError(f"{bundle.root / name}: the manifest does not list it; remove it or export the bundle again")
    return total


def load_array(path: Path) -> np.ndarray:
    """Returns the array of a float32 .npy file. Refuses pickled content. Raises BundleError."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise BundleError(f"{path}: not a readable .npy file: {e}") from e
    if array.dtype != np.float32:
        raise BundleError(f"{path}: dtype {array.dtype}, expected float32")
    return array


def file_record(root: Path, path: Path) -> FileRecord:
    """Returns the record of a file that lies under ``root``."""
    return FileRecord(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))


def tree_records(root: Path, path: Path) -> tuple[FileRecord, ...]:
    """Returns the records of a file, or of every file of a folder in order."""
    if path.is_file():
        return (file_record(root, path),)
    return tuple(file_record(root, p) for p in sorted(path.rglob("*")) if p.is_file())
