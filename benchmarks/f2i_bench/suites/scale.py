"""``make bench-scale``: photos of growing size through one engine: memory must stay flat, time per megapixel constant, and the work around the engine small.

    python -m f2i_bench.suites.scale BUNDLE [--sizes 12,50,200] [--target T] [--precision P] [--threads N] [--json F]

Every size runs in a process of its own, from file to file. Photos are laid out of those scikit-image ships. Processor time, which other programs on the
machine do not change, is what gates; wall time stands beside it. 200 megapixels take a small model on one core about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from f2i_runtime.bundle.store import Bundle, open_bundle
from f2i_runtime.errors import F2IError, GateError, UsageError
from f2i_runtime.files import write_json
from f2i_runtime.photo.decoders import vips
from f2i_runtime.photo.samples import SAMPLES, sample_photo
from f2i_runtime.pipeline import Pipeline, choose_variant, photo_plan, upscale_photo
from f2i_runtime.targets import Selection, Variant
from PIL import Image
from rich.console import Console
from rich.table import Table

from f2i_bench.host.photo_predictor import photo_size
from f2i_bench.host.workers import worker

MEMORY_RATIO, MEMORY_BYTES = 1.3, 2 << 30
TIME_SPREAD = 0.10
AROUND_SHARE = 0.05
START_SECONDS = 1.5
STARTS = 5
"""The number of cold commands that are tried. The fastest counts."""
CELL = 480
HOURS = 3 * 3600.0

_START = "import sys\nsys.path[:] = [p for p in sys.path if p]\nimport f2i.cli\ntry:\n    f2i.cli.main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"


@dataclass(frozen=True)
class Scaled:
    """One size: seconds of wall and processor time, and how they divide between engines and everything around them."""

    megapixels: float
    tiles: int
    seconds: float
    cpu_seconds: float
    engine_cpu_seconds: float
    peak_rss_bytes: int

    @property
    def around_share(self) -> float:
        """The processor time outside the engines, divided by the time inside them."""
        return (self.cpu_seconds - self.engine_cpu_seconds) / self.engine_cpu_seconds


@dataclass
class MeteredPipeline(Pipeline):
    """Counts the processor time of the engines, which with one thread is that of the thread that calls them."""

    engine_cpu: float = 0.0

    def run(self, component: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Runs a component as the pipeline does, and counts the thread's processor time."""
        began = time.thread_time()
        output = super().run(component, inputs)
        self.engine_cpu += time.thread_time() - began
        return output


def compose_photo(path: Path, megapixels: float) -> tuple[int, int]:
    """Write a JPEG of that size out of the sample photos, in flat memory. Returns (height, width)."""
    height, width = photo_size(megapixels)
    pyvips = vips()
    cells = [pyvips.Image.thumbnail(str(sample_photo(name)), CELL, height=CELL, crop="centre").colourspace("srgb")[:3] for name in SAMPLES]
    sheet = pyvips.Image.arrayjoin(cells, across=4).copy_memory()
    sheet.replicate(-(-width // sheet.width), -(-height // sheet.height)).crop(0, 0, width, height).jpegsave(str(path), Q=92)
    return height, width


def upscale_metered(pipeline: MeteredPipeline, photo: Path, out: Path) -> dict[str, float]:
    """Upscale a photo from file to file: ``{"seconds", "cpu_seconds", "engine_cpu_seconds"}``."""
    began, cpu = time.perf_counter(), time.process_time()
    upscale_photo(pipeline, photo, out)
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return spent | {"engine_cpu_seconds": pipeline.engine_cpu}


def measure_size(bundle: Bundle, variant: Variant, megapixels: float, threads: int, folder: Path) -> Scaled:
    """One photo in a fresh process. Raises ToolchainError when the engine fails."""
    photo, out = folder / "photo.jpg", folder / "photo_x2.jpg"
    height, width = compose_photo(photo, megapixels)
    with worker(f"{megapixels:g} MP", target=variant.target) as one:
        request = {"do": "upscale", "bundle": str(bundle.root.resolve()), **variant._asdict(), "threads": threads}
        found = one.ask(request | {"photo": str(photo), "out": str(out)}, HOURS)
    out.unlink()
    return Scaled(megapixels, photo_plan(bundle, height, width).count, **found)


def measure_start(bundle: Bundle, variant: Variant, folder: Path) -> tuple[float, bool]:
    """Fastest of some cold ``f2i run`` of a photo of one tile, from command to output, in seconds; and whether torch was imported."""
    side, photo = bundle.manifest.tile.size, folder / "one.png"
    with Image.open(sample_photo("retina.jpg")) as sample:
        sample.crop((0, 0, side, side)).save(photo)
    arguments = [
        "run",
        str(bundle.root),
        str(photo),
        "--out",
        str(folder / "one_x2.png"),
        *(word for name, value in variant._asdict().items() for word in (f"--{name}", value)),
    ]
    seconds, torch = [], False
    for _ in range(STARTS):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _START, *arguments], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            raise UsageError(f"f2i {' '.join(arguments)} ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
        torch = torch or done.stderr.strip().splitlines()[-1] == "True"
    return min(seconds), torch


@dataclass(frozen=True)
class ScaleGate:
    """A figure that must not exceed its limit."""

    name: str
    value: float
    limit: float
    passed: bool


def gates(rows: list[Scaled], start: float, torch: bool) -> list[ScaleGate]:
    """Returns the gates of all sizes together and of the start of a command."""
    per_megapixel = [r.cpu_seconds / r.megapixels for r in rows]
    memory = [r.peak_rss_bytes for r in rows]
    found = [
        ("peak memory, largest photo over smallest", memory[-1] / memory[0], MEMORY_RATIO),
        ("peak memory, bytes", float(max(memory)), float(MEMORY_BYTES)),
        ("processor time per megapixel, most over least, less one", max(per_megapixel) / min(per_megapixel) - 1, TIME_SPREAD),
        ("processor time around the engines over theirs", max(r.around_share for r in rows), AROUND_SHARE),
        ("seconds of a whole command on one tile", start, START_SECONDS),
        ("torch imported", float(torch), 0.0),
    ]
    return [ScaleGate(name, value, limit, value <= limit) for name, value, limit in found]


def main() -> None:
    """Runs the command. The exit code is 1 when a gate failed."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.scale", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", default="12,50,200", help="megapixels before upscaling, smallest first")
    parser.add_argument("--target")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; with more than one its processor time is not seen")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        _report(options)
    except F2IError as e:
        sys.stderr.write(f"scale: {e}\n")
        sys.exit(e.exit_code)


def _report(options: argparse.Namespace) -> None:
    bundle = open_bundle(options.bundle)
    variant = choose_variant(bundle, Selection(options.target, options.precision))
    try:
        sizes = sorted(float(size) for size in options.sizes.split(","))
    except ValueError as e:
        raise UsageError(f"--sizes {options.sizes}: expected megapixels such as 12,50,200") from e
    rows = []
    err = Console(stderr=True, markup=False, emoji=False)
    with tempfile.TemporaryDirectory(prefix="f2i-scale-") as name:
        folder = Path(name)
        start, torch = measure_start(bundle, variant, folder)
        for size in sizes:
            rows.append(measure_size(bundle, variant, size, options.threads, folder))
            err.print(f"{len(rows)} of {len(sizes)} sizes done", style="dim")
    judged = gates(rows, start, torch)
    _print(f"{bundle.manifest.name}, {variant}, {options.threads} thread(s)", rows, judged)
    if options.json:
        write_json(options.json, {"schema": 1, "sizes": [asdict(r) for r in rows], "gates": [asdict(g) for g in judged]})
    failed = [g.name for g in judged if not g.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(judged)} gates failed: {'; '.join(failed)}")


def _print(title: str, rows: list[Scaled], judged: list[ScaleGate]) -> None:
    out = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
    table = Table(title=title)
    for column in ("MP in", "MP out", "tiles", "seconds", "processor s", "processor s / MP", "around engines", "peak MB"):
        table.add_column(column, justify="right")
    for r in rows:
        figures = (f"{r.seconds:.1f}", f"{r.cpu_seconds:.1f}", f"{r.cpu_seconds / r.megapixels:.3f}", f"{r.around_share:.1%}")
        table.add_row(f"{r.megapixels:g}", f"{4 * r.megapixels:g}", str(r.tiles), *figures, f"{r.peak_rss_bytes / 1e6:.0f}")
    out.print(table)
    for gate in judged:
        out.print(f"{'passed' if gate.passed else 'FAILED'}  {gate.name}: {gate.value:.3g}, limit {gate.limit:.3g}")


if __name__ == "__main__":
    main()
