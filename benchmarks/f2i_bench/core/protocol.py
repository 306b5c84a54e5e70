"""What a benchmark is: its settings, the one JSON schema of its results, and the comparison with a baseline. Times are integers in nanoseconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Literal

from f2i_runtime.errors import UsageError
from f2i_runtime.records import Document, Record, VariantRow, read_document
from f2i_runtime.targets import Variant
from pydantic import Field

from f2i_bench.core.verdict import compare, compare_counts, summarize

SCHEMA = 2
MACHINE_MARGIN = 1.1
"""Two runs whose machine's own peak differs by more than this factor are not compared: the peak is the best of ten and repeats within 1 % when idle."""


class Settings(Record):
    """How long and how often. A row stops early, and says with how many runs, when it has taken ``seconds``."""

    warmup: int = Field(default=10, ge=0)
    runs: int = Field(default=50, ge=1)
    rounds: int = Field(default=10, ge=1)
    seconds: float = Field(default=6.0, gt=0)
    threads: tuple[int, ...] = (2, 1)
    sustained_minutes: float = Field(default=0.0, ge=0)
    max_temp_celsius: float | None = None
    """A round waits until the hottest sensor is below; null: the temperature before the first round and five degrees."""
    gate_seconds: float = Field(default=120.0, ge=0)
    """The longest wait for a lower temperature, in seconds."""


class BrowserFacts(Record):
    """A browser that measured: what it says that it is, and what it can do."""

    user_agent: str
    secure: bool
    """Whether the page came over HTTPS or from the device itself, which WebGPU and threads need."""
    isolated: bool
    """Whether the page may have threads (cross-origin isolation)."""
    simd: bool
    relaxed_simd: bool
    threads: bool
    jspi: bool
    webgpu: bool
    shader_f16: bool
    gpu: str | None
    """The adapter that WebGPU gives."""


class Device(Record):
    """The device that measured."""

    kind: Literal["host", "arm64", "adb", "apple", "web"]
    name: str
    serial: str | None = None
    os: str
    machine: str
    cpu: str
    cores: int
    memory_bytes: int
    emulated: bool = False
    """True when the wall times come from an emulator. Such times say nothing about a device."""
    browser: BrowserFacts | None = None


class Limit(Record):
    """What the machine can do at that many threads, measured in the same run. Operations and bytes per second; null where it could not be measured."""

    threads: int
    fp32_flops: float | None
    int8_ops: float | None
    bandwidth: float | None


class OpTime(Record):
    """Time of one kind of operator in one run of the component, by the engine's own profiler."""

    op: str
    calls: int
    ns: int


class Row(VariantRow):
    """One component of one variant at one number of threads."""

    component: str
    threads: int
    engine: str = ""
    status: Literal["ok", "failed", "gate failed", "not timed"]
    reason: str = ""
    cpu_level: str | None = None
    """The emulated processor."""
    load_ns: int | None = None
    first_ns: int | None = None
    rounds_ns: tuple[tuple[int, ...], ...] = ()
    median_ns: int | None = None
    p90_ns: int | None = None
    low_ns: int | None = None
    high_ns: int | None = None
    """The 95 % interval of the median."""
    peak_rss_bytes: int | None = None
    """The peak memory of the process that held the whole variant."""
    flops: int | None = None
    """Multiplications and additions of the reference's graph, two for each multiply-add."""
    bytes_moved: int | None = None
    """Compulsory traffic: the artifact's weights, its inputs and its output once each."""
    limit_share: float | None = None
    """The time that the machine's limit allows ÷ the median."""
    bound: Literal["arithmetic", "memory"] | None = None
    instructions: int | None = None
    """The instructions of one run, under emulation only: the median of three runs that follow the first."""
    sqnr_db: float | None = None
    """Parity on the device against the golden vectors, where the device is another."""
    rel_l2: float | None = None
    """The relative L2 error to this machine's own output of the same file, under emulation and in a browser."""
    native_ns: int | None = None
    """In a browser on this machine: the median of the same file on the engine's native build with as many threads, measured in the same run."""
    ops: tuple[OpTime, ...] = ()


class Layer(Record):
    """A part of a component's reference graph, by the names of its modules, and the operations that it takes."""

    component: str
    layer: str
    flops: int


class Sample(Record):
    """A moment of a sustained run. Null where the device has no such sensor."""

    at_ns: int
    tile_ns: int
    celsius: float | None
    megahertz: float | None


class Sustained(VariantRow):
    """Results of running tiles without a pause."""

    threads: int
    samples: tuple[Sample, ...]
    first_minute_ns: int
    last_minute_ns: int
    """Medians of the first and the last part: what a user's first photo meets, and what a warm phone gives."""


def sustained_run(variant: Variant, threads: int, samples: tuple[Sample, ...]) -> Sustained:
    """Samples of a run, at least one → the run with its first and last minute, or halves of a shorter one."""
    minute = min(60e9, samples[-1].at_ns / 2)
    return Sustained(
        **variant._asdict(),
        threads=threads,
        samples=samples,
        first_minute_ns=int(median(s.tile_ns for s in samples if s.at_ns <= minute)),
        last_minute_ns=int(median(s.tile_ns for s in samples if s.at_ns >= samples[-1].at_ns - minute)),
    )


class Compared(VariantRow):
    """A row's verdict against the baseline's row, by its time, or under emulation by its instructions."""

    component: str
    threads: int
    cpu_level: str | None = None
    measure: Literal["time", "instructions"] = "time"
    ratio: float
    low: float
    high: float | None
    """The upper end of the interval; null where it has no bound."""
    verdict: Literal["faster", "slower", "inconclusive"]


class Prediction(VariantRow):
    """A whole photo, predicted from per-tile figures; see :mod:`f2i_bench.host.photo_predictor`."""

    threads: int
    megapixels: float
    tiles: int
    seconds: float
    peak_rss_bytes: int
    core_seconds: float
    """Processor time: a proxy for energy, not joules."""
    measured_seconds: float | None = None
    measured_peak_rss_bytes: int | None = None
    error: float | None = None
    """(predicted - measured) ÷ measured seconds."""


class BenchReport(Document):
    """Everything that one ``f2i bench`` measured."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    created: str
    device: Device
    versions: dict[str, str]
    bundle: str
    manifest_sha256: str
    settings: Settings
    limits: tuple[Limit, ...] = ()
    layers: tuple[Layer, ...] = ()
    rows: tuple[Row, ...] = ()
    sustained: tuple[Sustained, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    baseline: str | None = None
    compared: tuple[Compared, ...] = ()
    notes: tuple[str, ...] = ()


def with_figures(row: Row) -> Row:
    """The row with median, p90 and interval of its rounds."""
    if not any(row.rounds_ns):
        return row
    s = summarize(row.rounds_ns)
    return row.model_copy(update={"median_ns": s.median, "p90_ns": s.p90, "low_ns": s.low, "high_ns": s.high})


def with_baseline(report: BenchReport, baseline: BenchReport, source: str) -> BenchReport:
    """The report with a verdict for every row that both hold.

    Raises UsageError when the two were measured on different devices or none of their rows match.
    """
    if (report.device.kind, report.device.name, report.device.cpu) != (baseline.device.kind, baseline.device.name, baseline.device.cpu):
        raise UsageError(
            f"{source}: measured on {baseline.device.kind} {baseline.device.name} ({baseline.device.cpu}), this run on {report.device.kind} "
            f"{report.device.name} ({report.device.cpu}); a baseline must come from the same device"
        )
    before = {_key(r): r for r in baseline.rows}
    disturbed = _disturbed(report, baseline)
    compared = [c for row in report.rows if (was := before.get(_key(row))) for c in _compare_rows(was, row, row.threads in disturbed)]
    if not compared:
        raise UsageError(f"{source}: it shares no row with this run; measure the baseline with the same targets, precisions and threads")
    notes = tuple(
        f"{n} threads: the machine's own peak is {ratio:.2f} times the baseline's, so something else was running: nothing is concluded"
        for n, ratio in disturbed.items()
    )
    return report.model_copy(update={"baseline": source, "compared": tuple(compared), "notes": report.notes + notes})


def _key(row: Row) -> tuple[Variant, str, int, str | None]:
    return row.variant, row.component, row.threads, row.cpu_level


def _compare_rows(before: Row, row: Row, disturbed: bool) -> list[Compared]:
    """The verdict on a row's instructions where both were counted, else on its time where both were timed, else nothing."""
    same = row.variant._asdict() | {
        "component": row.component,
        "threads": row.threads,
        "cpu_level": row.cpu_level,
    }
    if before.instructions and row.instructions:
        found = compare_counts(before.instructions, row.instructions)
        return [Compared.model_validate(same | {"measure": "instructions"} | asdict(found))]
    if before.status == row.status == "ok" and before.rounds_ns and row.rounds_ns:
        found = compare(before.rounds_ns, row.rounds_ns)
        verdict = "inconclusive" if disturbed else found.verdict
        high = None if found.high == float("inf") else found.high
        return [Compared.model_validate(same | asdict(found) | {"high": high, "verdict": verdict})]
    return []


def _disturbed(report: BenchReport, baseline: BenchReport) -> dict[int, float]:
    """Numbers of threads at which the machine itself, measured by its peak arithmetic, was not the same in both runs; with the ratio of the peaks."""
    before = {limit.threads: limit.fp32_flops for limit in baseline.limits}
    ratios = {m.threads: m.fp32_flops / b for m in report.limits if m.fp32_flops and (b := before.get(m.threads))}
    return {n: ratio for n, ratio in ratios.items() if not 1 / MACHINE_MARGIN <= ratio <= MACHINE_MARGIN}


def read_bench(path: Path) -> BenchReport:
    """Returns what ``f2i bench --json`` wrote. Raises UsageError with the first thing that is wrong."""
    return read_document(path, BenchReport, "f2i bench --json")
