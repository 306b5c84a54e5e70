"""A folder as a hub's cache keeps it: a snapshot whose files are links into a store of blobs named by their hashes."""

import hashlib
import os


def as_snapshot(folder, cache):
    """Moves the files of ``folder`` into a repository below ``cache``; returns the snapshot's folder, every file of which is a relative link."""
    repository = cache / "models--someone--something"
    snapshot = repository / "snapshots" / ("0" * 39 + "1")
    (repository / "blobs").mkdir(parents=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
