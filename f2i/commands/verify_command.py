"""``f2i verify``: are a bundle's files the ones that were exported?"""

from __future__ import annotations

from f2i.terminal import BundleArgument, err, out


def verify(bundle: BundleArgument) -> None:
    """Check a bundle's manifest and the hash of every file. This needs no engine and no network.

    Example: `f2i verify bundle`
    """
    from f2i_runtime.bundle.store import litter, open_bundle
    from f2i_runtime.bundle.store import verify as verify_bundle

    opened = open_bundle(bundle)
    total = verify_bundle(opened)
    if left := litter(opened):
        err.print(f"not of the bundle, but of the system, and harmless: {', '.join(left)}", style="dim")
    out.print(f"{bundle}: {len(opened.manifest.files())} files, {total / 1e6:.1f} MB, all as the manifest says")
