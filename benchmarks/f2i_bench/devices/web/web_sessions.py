"""What the browsers said: one session each, its outputs in a folder of its own, and its results as judged rows."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime import __version__
from f2i_runtime.bundle.manifest import Call
from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.targets import CPU, FLOAT, Variant

from f2i_bench.core.protocol import BenchReport, Device, Row, with_figures
from f2i_bench.devices.parity_job import Job, NativeOutputs, judge
from f2i_bench.devices.web.browser_names import device_name, system_name
from f2i_bench.devices.web.web_plan import LANES, WebPlan, output_bytes, packages_of
from f2i_bench.devices.web.web_records import Arrival, PostedItem, PostedResult
from f2i_bench.devices.web.web_runtimes import PACKAGES

MAX_SESSIONS = 64
"""The browsers that one run takes. Each keeps its outputs until its result has come: the bundle's output tensors, once."""
MAX_THREADS = 256
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{16}")
GONE = "the page was closed, or its device slept, before this was measured"


@dataclass(frozen=True)
class Native:
    """What this machine's own engine gave of a variant: the folder of its outputs, and where it was timed the medians in ns by (component, threads)."""

    outputs: Path | None = None
    medians: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class Session:
    """One browser that opened the page."""

    number: int
    arrival: Arrival
    folder: Path
    asked: tuple[tuple[int, str, int], ...] = ()
    """What the page said that it will measure: job, backend, threads."""
    rows: dict[tuple[int, str, int], list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)
    ended: bool = False


class Sessions:
    """All browsers of a run. Its methods may be called from any thread; what they raise for what a page sent is UsageError."""

    def __init__(self, bundle: Bundle, plan: WebPlan, folder: Path, natives: Mapping[Variant, Native]) -> None:
        self._bundle, self._plan, self._folder, self._natives = bundle, plan, folder, natives
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.changed: Callable[[Session], None] = lambda _: None
        """Called, in a thread of the server, when a browser came, sent a result or ended."""

    def arrive(self, arrival: Arrival, asked: tuple[tuple[int, str, int], ...]) -> str:
        """Returns the identifier of a new session. Raises UsageError when there are too many."""
        identifier = secrets.token_urlsafe(12)
        for job, backend, threads in asked:
            if not 0 <= job < len(self._plan.variants) or backend not in LANES or not 1 <= threads <= MAX_THREADS:
                raise UsageError(f"job {job} on {backend[:20]!r} with {threads} threads is not in the plan")
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                raise UsageError(f"there are {MAX_SESSIONS} browsers already; start another run")
            number = len(self._sessions) + 1
            folder = self._folder / f"browser-{number}"
            folder.mkdir()
            session = self._sessions[identifier] = Session(number, arrival, folder, tuple(dict.fromkeys(asked)))
        self.changed(session)
        return identifier

    def find(self, identifier: str) -> Session:
        """Returns a session. Raises UsageError for an identifier that this run gave to nobody."""
        with self._lock:
            session = self._sessions.get(identifier) if IDENTIFIER.fullmatch(identifier) else None
        if session is None:
            raise UsageError("no such session; load the page again")
        session.seen = time.monotonic()
        return session

    def expected_bytes(self, component: str) -> int:
        """Returns the size of a component's output. Raises UsageError for a component that the bundle has not."""
        if component not in {call.component for call in self._plan_calls()}:
            raise UsageError("no such component")
        return output_bytes(self._bundle, component)

    def keep_output(self, session: Session, component: str, body: bytes) -> None:
        """Keeps a component's output, raw little-endian float32, until the result comes that it belongs to. Raises UsageError for another size."""
        if len(body) != self.expected_bytes(component):
            raise UsageError(f"the output has {len(body)} bytes, expected {self.expected_bytes(component)}")
        [result] = {call.result for call in self._plan_calls() if call.component == component}
        shape = self._bundle.manifest.components[component].output_spec.shape
        np.save(session.folder / f"out-{result}.npy", np.frombuffer(body, "<f4").reshape(shape).astype(np.float32))

    def judge_result(self, session: Session, posted: PostedResult) -> list[Row]:
        """Returns the rows of a result, with its parity by the outputs that came before it. Raises UsageError when it is not what the plan asks for."""
        key = (posted.job, posted.backend, posted.threads)
        if key not in session.asked:
            raise UsageError(f"job {posted.job} on {posted.backend[:20]!r} with {posted.threads} threads was not announced")
        names = tuple(call.component for call in self._plan_calls())
        if tuple(item.component for item in posted.items) != names:
            raise UsageError(f"the result is not about {', '.join(names)}")
        variant = self._plan.variants[posted.job]
        native = self._natives.get(variant, Native())
        job = Job(session.folder, variant, posted.threads, tuple({"component": name} for name in names))
        result = {"engine": posted.engine, "items": [_item(item) for item in posted.items], "peak_rss_bytes": None}
        judged = judge(
            self._bundle,
            job,
            result,
            session.folder,
            note=f" ({posted.backend})",
            native=self._beside(variant, native, LANES[posted.backend]),
        )
        rows, results = [], {call.component: call.result for call in self._plan_calls()}
        for row, item in zip(judged, posted.items, strict=True):
            update = {
                "accelerator": LANES[posted.backend],
                "rounds_ns": tuple(tuple(r) for r in item.rounds if r),
                "native_ns": native.medians.get((row.component, posted.threads)) if LANES[posted.backend] == "cpu" else None,
            }
            output = session.folder / f"out-{results[row.component]}.npy"
            rows.append(with_figures(_finite(row.model_copy(update=update), output)))
        for output in session.folder.glob("out-*.npy"):
            output.unlink()
        with self._lock:
            session.seen = time.monotonic()
            session.rows[key] = rows
            if posted.start_ns:
                session.notes.append(
                    f"{posted.engine} ({posted.backend}, {posted.threads} threads) started in {posted.start_ns / 1e6:.0f} ms"
                )
        self.changed(session)
        return rows

    def end(self, session: Session) -> None:
        """Notes that a page has measured all that it could."""
        session.ended = True
        self.changed(session)

    def all(self) -> list[Session]:
        """Returns the sessions in the order of their arrival."""
        with self._lock:
            return list(self._sessions.values())

    def report(self, session: Session) -> BenchReport:
        """Returns a browser's results so far; what it announced and did not measure is failed rows."""
        arrival, facts = session.arrival, session.arrival.facts()
        with self._lock:
            rows = [row for key in session.asked for row in session.rows.get(key, [])]
            rows += [row for key in session.asked if key not in session.rows for row in self._missing(*key)]
            nothing = () if session.asked else ("nothing was measured: what was asked for needs WebGPU, which this page had not",)
            notes = (*dict.fromkeys(session.notes), *nothing)
        device = Device(
            kind="web",
            name=device_name(arrival),
            serial=f"browser-{session.number}",
            os=system_name(arrival),
            machine=arrival.architecture or "unknown",
            cpu=arrival.architecture or "unknown",
            cores=arrival.cores,
            memory_bytes=int((arrival.memory_gib or 0) * 2**30),
            browser=facts,
        )
        return BenchReport(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            device=device,
            versions={"f2i-mobile": __version__, **{name: PACKAGES[name].version for name in packages_of(self._plan.variants)}},
            bundle=self._bundle.manifest.name,
            manifest_sha256=sha256_file(self._bundle.root / MANIFEST),
            settings=self._plan.settings,
            rows=tuple(rows),
            notes=notes,
        )

    def _beside(self, variant: Variant, native: Native, accelerator: str) -> NativeOutputs | None:
        """Returns this machine's outputs to compare with.

        A GPU has arithmetic of its own, and is judged by the bundle's gate alone. A quantized model of random weights carries one value that is rounded the
        other way through all its layers, so that correct builds of an engine differ as much as either does from floats: there the difference is told and
        fails nothing.
        """
        if native.outputs is None:
            return None
        same = variant.precision in FLOAT or self._bundle.manifest.model.trained
        return NativeOutputs(native.outputs, gated=accelerator == CPU and same)

    def _missing(self, job: int, backend: str, threads: int) -> list[Row]:
        variant = self._plan.variants[job]
        base = {**variant._asdict(), "accelerator": LANES[backend], "threads": threads, "status": "failed", "reason": GONE}
        return [Row.model_validate(base | {"component": call.component}) for call in self._plan_calls()]

    def _plan_calls(self) -> tuple[Call, ...]:
        return self._bundle.manifest.dataflow


def _finite(row: Row, output: Path) -> Row:
    """Returns the row, failed where its output holds NaN or infinity, whatever its gate says, and with finite figures."""
    if row.status != "ok" and row.status != "gate failed":
        return row
    if output.is_file() and not np.isfinite(np.load(output)).all():
        return row.model_copy(
            update={"status": "gate failed", "reason": "the output holds NaN or infinity", "sqnr_db": None, "rel_l2": None}
        )
    return row


def _item(item: PostedItem) -> dict[str, Any]:
    error = item.error if item.error is not None else None if item.load_ns else "it was not loaded"
    return {"component": item.component, "load_ns": item.load_ns, "first_ns": item.first_ns, "ns": [], "error": error}
