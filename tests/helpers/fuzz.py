"""Mutated photos and manifests: each is read, or refused in one line. ``make fuzz`` runs thousands; ``test_fuzz.py`` a few.

    python tests/helpers/fuzz.py [--photos N] [--manifests N] [--seed N] [--workers N] [--keep DIR]

Case K of a seed is the same on every run. Cases go to child processes whose memory is limited by the system; one that dies, raises anything but our own
errors, says more than a line, or takes longer than ten seconds is a finding, and its input is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from repository import TESTS

SECONDS = 10.0
MEMORY = 2 << 30
SMALL = 1 << 20
"""Pixels up to which a photo that can be read is upscaled and written as well."""
BATCH = 250
"""Cases of one child: then a fresh one, so that no case suffers from what another left behind."""


@dataclass(frozen=True)
class Finding:
    """A case that was neither read nor refused in one line."""

    kind: str
    number: int
    what: str


# Seeds: one small file of every kind that is read


def photo_seeds() -> list[bytes]:
    """Files of 24 to 96 px a side in every format, depth and layout."""
    import numpy as np
    import pillow_heif
    import pyvips
    from PIL import Image, ImageCms

    rng = np.random.default_rng(7)
    base = np.clip(np.add.outer(np.arange(40), np.arange(56))[:, :, None] * 2 + rng.integers(0, 40, (40, 56, 3)), 0, 255).astype(np.uint8)
    rgb, profile = Image.fromarray(base), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    seeds = []

    def pillow(image: Any, kind: str, **options: Any) -> None:
        sink = io.BytesIO()
        image.save(sink, kind, **options)
        seeds.append(sink.getvalue())

    pillow(rgb, "JPEG", quality=90, icc_profile=profile, exif=exif)
    pillow(rgb, "JPEG", progressive=True, subsampling=2)
    pillow(rgb.convert("L"), "JPEG")
    pillow(rgb.convert("CMYK"), "JPEG")
    pillow(rgb, "PNG", icc_profile=profile, exif=exif)
    pillow(rgb.convert("RGBA"), "PNG")
    pillow(rgb.convert("P"), "PNG")
    pillow(rgb.convert("1"), "PNG")
    pillow(rgb, "TIFF", compression="tiff_lzw")
    pillow(rgb.convert("CMYK"), "TIFF")
    pillow(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(90)])
    pillow(rgb, "WEBP", lossless=True, icc_profile=profile, exif=exif)
    pillow(rgb.convert("RGBA"), "WEBP", quality=80)
    pillow(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])
    deep = pyvips.Image.new_from_array(base.astype(np.uint16) * 257).copy(interpretation="rgb16")
    seeds.append(deep.pngsave_buffer(interlace=True))
    seeds.append(deep.tiffsave_buffer(compression="deflate", predictor="horizontal", tile=True, tile_width=16, tile_height=16))
    seeds.append(deep.tiffsave_buffer(bigtiff=True))
    seeds.append(deep.extract_band(0).copy(interpretation="grey16").pngsave_buffer())
    seeds.append(pyvips.Image.new_from_array(base).heifsave_buffer(compression="av1", Q=60))
    seeds.append(deep.heifsave_buffer(compression="av1", bitdepth=10, Q=60))
    sink = io.BytesIO()
    pillow_heif.from_pillow(rgb).save(sink, quality=70)
    seeds.append(sink.getvalue())
    return seeds


# Mutations


def mutate(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """One to six changes, most of them near the start, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if len(out) < 8:
            break
        at = rng.randrange(min(len(out), 600)) if rng.random() < 0.6 else rng.randrange(len(out))
        _change(out, at, seeds, rng)
    result = bytes(out)
    return with_checksums(result) if result[:4] == b"\x89PNG" and rng.random() < 0.8 else result


def _change(out: bytearray, at: int, seeds: list[bytes], rng: random.Random) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
    elif kind == 2:
        value, order = rng.choice((0, 1, 0xFFFF, 0x7FFF, 0x8000, rng.randrange(1 << 16))), rng.choice("<>")
        out[at : at + 2] = struct.pack(f"{order}H", value)
    elif kind == 3:
        value, order = rng.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 65_000, 1 << 24, rng.randrange(1 << 32))), rng.choice("<>")
        out[at : at + 4] = struct.pack(f"{order}I", value)
    elif kind == 4:
        del out[at : at + rng.choice((1, 2, 4, 16, 200))]
    elif kind == 5:
        out[at:at] = out[at : at + rng.choice((1, 4, 32, 500))] * rng.choice((1, 2, 20))
    elif kind == 6:
        del out[max(8, at) :]
    else:
        other = rng.choice(seeds)
        start = rng.randrange(len(other))
        out[at : at + 32] = other[start : start + rng.choice((4, 32, 400))]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums fit, so that a change gets past them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack(">I", out[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 70,
    1e308,
    "",
    "../x",
    "/etc/passwd",
    "a" * 5000,
    "\u0000",
    [],
    {},
    [[]],
    {"a": 1},
    "w8a8",
    3.5,
    "2" * 400,
)


def mutate_manifest(text: str, rng: random.Random) -> str:
    """Values exchanged in the tree, keys removed, renamed or doubled; or bytes of the text changed."""
    if rng.random() < 0.4:
        out = bytearray(text.encode())
        for _ in range(rng.choice((1, 2, 5))):
            _change(out, rng.randrange(len(out)), [b'"schema": 1', b"[" * 4000, b"NaN", b"1e999", b"{}", b"\\ud800"], rng)
        return out.decode("utf-8", "replace")
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent, key = rng.choice(list(_places(data)))
        what = rng.randrange(4)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[rng.choice(("extra", "schema", "artifacts", ""))] = parent[key]
        elif what == 2 and isinstance(parent, list):
            parent.extend([parent[key]] * rng.choice((1, 3000)))
        else:
            parent[key] = rng.choice(ODD)
    return json.dumps(data)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list) and node[key]:
            yield from _places(node[key])


def case(kind: str, number: int, seed: int, seeds: list[bytes]) -> bytes:
    """Input of one case."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    if kind == "photo":
        return mutate(seeds[number % len(seeds)], seeds, rng)
    return mutate_manifest(seeds[0].decode(), rng).encode("utf-8", "replace")


# The child: reads what the tool reads


def child(folder: Path, memory: int) -> None:
    """Serve ``kind path`` lines on stdin with one JSON line each: null, or what went wrong. ``memory``: bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        kind, _, path = line.strip().partition(" ")
        replies.write(json.dumps(attempt(kind, Path(path), folder)) + "\n")
        replies.flush()


def attempt(kind: str, path: Path, folder: Path) -> str | None:
    """What is wrong with how this case ended, or None."""
    from f2i_runtime.errors import UsageError

    try:
        read_photo(path, folder) if kind == "photo" else read_manifest(path)
    except UsageError as e:
        if "out of memory" in str(e).lower():  # a decoder says so in its own words
            return f"needs more memory than there is: {e}"
        return None if "\n" not in str(e) else f"more than one line: {e}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    left = [p.name for p in folder.iterdir()]
    return f"left behind: {left}" if left else None


def read_photo(path: Path, folder: Path) -> None:
    """Read to the end; a small photo is enlarged and written too, in a format that keeps its extras."""
    from f2i_runtime.photo.reader import PhotoReader
    from f2i_runtime.photo.writer import PhotoWriter
    from f2i_runtime.tiling.blend import TilePlan, upscale_blocks

    with PhotoReader(path) as reader:
        if reader.width * reader.height > SMALL:
            for y in range(0, reader.height, 64):
                reader.samples(y, min(y + 64, reader.height))
            return
        out = folder / f"out{(path.stat().st_size % 3 == 0 and '.png') or (path.stat().st_size % 3 == 1 and '.jpg') or '.webp'}"
        plan = TilePlan(reader.height, reader.width, tile=64, overlap=8)
        try:
            with PhotoWriter(out, 2 * reader.width, 2 * reader.height, like=reader) as writer:
                enlarge = upscale_blocks(reader.samples, plan, lambda t, _: t.repeat(2, 2).repeat(2, 3), decode=reader.decode)
                for y, x, block in enlarge:
                    writer.write_block(y, x, block)
        finally:
            out.unlink(missing_ok=True)


def read_manifest(path: Path) -> None:
    """All that is done with a manifest before an engine opens a file that it names."""
    from f2i_runtime.bundle.store import open_bundle, verify
    from f2i_runtime.pipeline import choose_variant, photo_plan
    from f2i_runtime.targets import EVERYTHING

    bundle = open_bundle(path.parent)
    photo_plan(bundle, 300, 400)
    choose_variant(bundle, EVERYTHING)
    for artifact in bundle.manifest.artifacts:
        bundle.path(artifact.path)
    verify(bundle)


# The parent


class Child:
    """A process that cases are handed to."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="f2i-fuzz-out-")
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__)), "--child", self.folder.name, str(MEMORY)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment)
        self.done = 0

    def ask(self, kind: str, path: Path) -> tuple[str | None, bool]:
        """What was wrong, or None; and whether the process can go on."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{kind} {path}\n".encode())
        self.process.stdin.flush()
        self.done += 1
        began = time.monotonic()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS + (20 if self.done == 1 else 0))
        if not ready:
            return f"no end after {time.monotonic() - began:.0f} s", False
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            words = self.log.read().decode(errors="replace").strip().splitlines()
            return f"the process died with code {self.process.wait()}: {words[-1] if words else ''}", False
        return json.loads(line), True

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()  # closes its pipes, too
        self.folder.cleanup()
        self.log.close()


def fuzz(kind: str, count: int, seed: int, keep: Path | None = None, first: int = 0) -> list[Finding]:
    """Run cases ``first`` to ``first + count`` and return what was found; inputs of findings go to ``keep``."""
    seeds = photo_seeds() if kind == "photo" else [(TESTS / "data" / "manifest.json").read_bytes()]
    findings, worker = [], None
    with tempfile.TemporaryDirectory(prefix="f2i-fuzz-") as name:
        path = Path(name) / ("manifest.json" if kind == "manifest" else "case")
        try:
            for number in range(first, first + count):
                if worker is None or worker.done == BATCH:
                    if worker:
                        worker.close()
                    worker = Child()
                path.write_bytes(case(kind, number, seed, seeds))
                what, alive = worker.ask(kind, path)
                if what:
                    findings.append(Finding(kind, number, what))
                    _say(f"{kind} {number}: {what}")
                    if keep:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{kind}-{seed}-{number}").write_bytes(path.read_bytes())
                if not alive:
                    worker.close()
                    worker = None
        finally:
            if worker:
                worker.close()
    return findings


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command: exit code 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--manifests", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), int(options.child[1]))
        return 0
    began, found = time.monotonic(), 0
    for kind, count in (("manifest", options.manifests), ("photo", options.photos)):
        findings = fuzz(kind, count, options.seed, options.keep, options.first)
        found += len(findings)
        _say(f"{count} {kind}s: {len(findings)} findings, {time.monotonic() - began:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
