"""``f2i bench --device web``: a page that whoever opens it measures with, and what comes back, judged here.

The page runs the golden vectors through the engines' builds for browsers and posts outputs and times. Outputs are compared on this machine, with the
reference's and with those of its own engines; several browsers may come at once, and each is a report of its own.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.targets import EVERYTHING, Selection, Variant, find_target

from f2i_bench.core.protocol import BenchReport, Settings
from f2i_bench.core.verdict import summarize
from f2i_bench.devices.android.adb import Phone, connected, find_adb
from f2i_bench.devices.parity_job import Load, run_here, stage
from f2i_bench.devices.web.web_address import LOOPBACK, lan_address, own_certificate, qr_lines
from f2i_bench.devices.web.web_options import Address, WebOptions
from f2i_bench.devices.web.web_plan import make_plan, packages_of, page_variants
from f2i_bench.devices.web.web_runtimes import runtime_folders
from f2i_bench.devices.web.web_server import WebServer, serving
from f2i_bench.devices.web.web_sessions import Native, Session, Sessions

NATIVE_SECONDS = 1800.0
GRACE_SECONDS = 90.0
"""A browser that has said nothing for so long is not waited for when a number of browsers was asked for."""
Progress = Callable[[str, int, int], None]


def bench_web(
    bundle: Bundle,
    settings: Settings,
    options: WebOptions,
    *,
    only: Selection = EVERYTHING,
    progress: Progress = lambda *_: None,
    announce: Callable[[Address], None] = lambda _: None,
) -> list[BenchReport]:
    """Serve the page, and return one report for each browser that opened it.

    ``announce`` is called once, when the page can be opened. Ctrl-C ends the wait, not the command. Raises UsageError when the bundle holds nothing for a
    browser, its runtimes cannot be had, options contradict one another, or nobody opened the page.
    """
    if options.adb and options.lan:
        raise UsageError("--adb and --lan are two ways to a phone; choose one")
    variants, phones = page_variants(bundle, only), _phones(options)
    host = lan_address() if options.lan else LOOPBACK
    tls, fingerprint = own_certificate(host) if options.https else (None, "")
    plan = make_plan(bundle, settings, only, runtime_folders(packages_of(variants), progress))
    with tempfile.TemporaryDirectory(prefix="f2i-web-") as folder:
        # Only a browser on this machine is timed beside this machine's engines; a phone's outputs are compared with theirs all the same.
        natives = _natives(bundle, variants, Path(folder), settings if host == LOOPBACK and not options.adb else None, progress)
        results = Path(folder) / "browsers"
        results.mkdir()
        sessions = Sessions(bundle, plan, results, natives)
        token = secrets.token_urlsafe(16)
        server = _listen(host, options, lambda address: WebServer(address, plan, sessions, token, tls))
        port = server.server_address[1]
        url = f"{'https' if tls else 'http'}://{'localhost' if options.adb else host}:{port}/{token}/"
        with serving(server), _cable(phones, port, url):
            announce(_address(url, options, fingerprint, len(phones)))
            _wait(sessions, options, progress)
        found = sessions.all()
        if not found:
            raise UsageError(
                f"nobody opened the page in {options.minutes:g} minutes; run it again, and open {url.rpartition('/')[0][:30]}…"
            )
        return [sessions.report(session) for session in found]


def _listen(host: str, options: WebOptions, make: Callable[[tuple[str, int]], WebServer]) -> WebServer:
    try:
        return make((host, options.port))
    except OSError as e:
        raise UsageError(f"cannot listen on {host}, port {options.port}: {e.strerror or e}; choose another --port, or 0 for any") from e


def _natives(
    bundle: Bundle, variants: Sequence[Variant], folder: Path, timed: Settings | None, progress: Progress
) -> dict[Variant, Native]:
    """Runs every variant on this machine's own engine, where it has one: once for its outputs, and where ``timed`` says so for its times."""
    found: dict[Variant, Native] = {}
    for k, variant in enumerate(variants):
        target = find_target(variant.target)
        if target.arm64 and target.native_here and target.engine.installed():
            with contextlib.suppress(ToolchainError):  # an engine that fails here says nothing about one that runs in a browser
                found[variant] = _native(bundle, variant, folder / f"native-{k}", timed)
        progress("this machine's own engines", k + 1, len(variants))
    return found


def _native(bundle: Bundle, variant: Variant, folder: Path, timed: Settings | None) -> Native:
    folder.mkdir()
    job = stage(bundle, variant, folder / "outputs", Load(threads=1))
    first = run_here(job, NATIVE_SECONDS)
    medians: dict[tuple[str, int], int] = {}
    if timed:
        slowest = max((item["first_ns"] or 1) for item in first["items"])
        runs = max(3, min(timed.runs, int(timed.seconds * 1e9 / slowest)))
        for threads in timed.threads:
            measured = stage(bundle, variant, folder / f"times-{threads}", Load(threads, min(timed.warmup, runs), runs))
            for item in run_here(measured, NATIVE_SECONDS)["items"]:
                if item["ns"]:
                    medians[item["component"], threads] = summarize([item["ns"]]).median
    return Native(job.folder if all(item["error"] is None for item in first["items"]) else None, medians)


def _address(url: str, options: WebOptions, fingerprint: str, phones: int) -> Address:
    notes = [f"It is served for {options.minutes:g} minutes; Ctrl-C ends it and shows the results."]
    if options.adb:
        return Address(url, (), (f"Opened on {phones} device{'' if phones == 1 else 's'} over the cable.", *notes))
    if not options.lan:
        notes.append("It opens on this computer only. For a phone: --lan in the same network, or --adb over a cable.")
        return Address(url, (), tuple(notes))
    if options.https:
        notes += [
            "The browser will say that the connection is not private, since this computer made the certificate itself: choose Advanced (Safari: Show "
            "Details), then Proceed. The page then has threads, and WebGPU where the phone has it.",
            f"The certificate's SHA-256: {fingerprint}",
        ]
    else:
        notes.append("Over plain HTTP the page has one thread and no WebGPU; --https or --adb give both.")
    return Address(url, qr_lines(url), tuple(notes))


def _phones(options: WebOptions) -> list[Phone]:
    """Returns every device that adb lists, none without ``--adb``. Raises UsageError where it lists none: before anything is fetched or measured."""
    if not options.adb:
        return []
    adb = find_adb()
    phones = [Phone(adb, serial) for serial, state in connected(adb).items() if state == "device"]
    if not phones:
        raise UsageError("--adb: no usable device is attached; allow USB debugging on it, and look at `adb devices`")
    return phones


@contextlib.contextmanager
def _cable(phones: Sequence[Phone], port: int, url: str) -> Iterator[None]:
    """Opens the page on every phone, whose own port of that number leads here until the end of the block."""
    try:
        for phone in phones:
            phone.forward_here(port)
            phone.try_shell(f"am start -a android.intent.action.VIEW -d '{url}'")
        yield
    finally:
        for phone in phones:
            phone.end_forward(port)


def _wait(sessions: Sessions, options: WebOptions, progress: Progress) -> None:
    """Returns when the minutes are over, on Ctrl-C, or when as many browsers as were asked for have ended or fallen silent."""
    changed = threading.Event()

    def show(session: Session) -> None:
        progress(f"browser {session.number}", len(session.rows), len(session.asked))
        changed.set()

    sessions.changed = show
    until = time.monotonic() + 60 * options.minutes
    with contextlib.suppress(KeyboardInterrupt):
        while (left := until - time.monotonic()) > 0:
            changed.wait(min(left, 1.0))
            changed.clear()
            if options.browsers:
                silent = time.monotonic() - GRACE_SECONDS
                over = [s for s in sessions.all() if s.ended or s.seen < silent]
                if len(over) >= options.browsers:
                    return
