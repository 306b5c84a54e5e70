"""``f2i verify``: are a bundle's files the ones that were exported?"""

from __future__ import annotations

from f2i.terminal import BundleArgument, out


def verify(bundle: BundleArgument) -> None:
    """Check a bundle's manifest and the hash of every file. This needs no engine and no network.

    Example: `f2i verify bundle`
    """
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.bundle.store import verify as verify_bundle

    opened = open_bundle(bundle)
    total = verify_bundle(opened)
    out.print(f"{bundle}: {len(opened.manifest.files())} files, {total / 1e6:.1f} MB, all as the manifest says")
