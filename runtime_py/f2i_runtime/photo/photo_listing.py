"""Which photos a folder, a list or a file stands for: the one place that decides it, for every command."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import SAMPLES, sample_photo
from f2i_runtime.text_files import list_entries

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif", ".hif", ".bmp"})
LIST_SUFFIX = ".txt"
COMPANION_FOLDERS = frozenset({"@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found", "system volume information"})
"""Folders that systems and storage devices keep beside photos, in lower case: thumbnails and what was deleted."""


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or a companion: ``._IMG_1.jpg``, ``.thumbnails``, ``@eaDir``."""
    return name.startswith(".") or name.lower() in COMPANION_FOLDERS


def walk_photos(folder: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Returns the photos in ``folder``, in no order: files whose suffix is a photo's, and links to such files.

    Hidden files and companion folders are left out, and links to folders are not followed. A folder below that cannot be read is left out.
    """
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not is_hidden(name)]
        for name in names:
            path = Path(current, name)
            if path.suffix.lower() in PHOTO_SUFFIXES and not is_hidden(name) and path.is_file():
                yield path


def find_photos(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Returns the photos of a folder in name order, see :func:`walk_photos`. Raises UsageError when it is no folder or holds none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of photos")
    found = sorted(walk_photos(folder, recursive=recursive))
    if not found:
        raise UsageError(f"{folder}: no photos in it; expected files ending in {', '.join(sorted(PHOTO_SUFFIXES))}")
    return found


def photo_files(source: Path | None) -> list[Path]:
    """Returns the photos directly in a folder, in name order, those of a ``.txt`` list with one path per line, a single file, or the sample photos.

    Raises UsageError when there are none, or when a listed photo does not exist.
    """
    if source is None:
        return [sample_photo(name) for name in SAMPLES]
    if not source.is_file():
        return find_photos(source, recursive=False)
    if source.suffix.lower() != LIST_SUFFIX:
        return [source]
    listed = [Path(line) for line in list_entries(source)]
    for path in listed:
        if not path.is_file():
            raise UsageError(f"{source}: {path}: no such photo")
    if not listed:
        raise UsageError(f"{source}: the list is empty; expected one path per line")
    return listed


def photo_names(paths: Sequence[Path]) -> list[str]:
    """Returns a name for every path that no other has: the file's, or its path below the folder that all share where two files have one name."""
    count = Counter(path.name for path in paths)
    if len(paths) == len(count):
        return [path.name for path in paths]
    shared = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.name if count[path.name] == 1 else path.absolute().relative_to(shared).as_posix() for path in paths]
