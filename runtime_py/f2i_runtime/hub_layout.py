"""Whether a path stays in a folder, where folders are as hubs keep them: a snapshot's files are links into a store beside it.

    REPOSITORY/blobs/HASH                        the content of a file, named by its hash
    REPOSITORY/snapshots/REVISION/folder/file    a link to ../../../blobs/HASH

Source: the cache that huggingface_hub documents under "Understand caching".
"""

from __future__ import annotations

from pathlib import Path

BLOBS, SNAPSHOTS = "blobs", "snapshots"


def stays_inside(root: Path, path: Path) -> bool:
    """Returns whether ``path``, with all links followed, lies in ``root``, or is a blob of the repository of which ``root`` is in a snapshot."""
    real = path.resolve()
    if real.is_relative_to(root.resolve()):
        return True
    store = _blob_store(root.resolve())
    return store is not None and real.parent == store


def _blob_store(root: Path) -> Path | None:
    for folder in (root, *root.parents):
        repository = folder.parent.parent
        # A store that is itself a link would lead anywhere.
        if folder.parent.name == SNAPSHOTS and (repository / BLOBS).is_dir() and not (repository / BLOBS).is_symlink():
            return repository / BLOBS
    return None
