"""The benchmark's page in a test: the command as a user starts it, and the server alone with stand-ins for the runtimes."""

import contextlib
import re
import secrets
import signal
import subprocess
import threading

from f2i_bench.core.protocol import Settings
from f2i_bench.devices.web.web_plan import make_plan
from f2i_bench.devices.web.web_server import WebServer, serving
from f2i_bench.devices.web.web_sessions import Sessions
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.targets import Selection
from repository import F2I, heeding_ctrl_c

QUICK = Settings(warmup=1, runs=6, rounds=3, seconds=1.0, threads=(1,))
ARRIVAL = {
    "user_agent": "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/156.0.0.0 Mobile Safari/537.36",
    "platform": "Android", "model": "Pixel 8", "architecture": "arm", "cores": 9, "memory_gib": 8, "gpu": None, "secure": False, "isolated": False,
    "simd": True, "relaxed_simd": True, "threads": False, "jspi": False, "webgpu": False, "shader_f16": False,
}  # fmt: skip


class Command:
    """A running ``f2i bench --device web``: its address, what it says on stderr, and what it prints."""

    def __init__(self, process):
        self.process, self.said, self.printed, self.url = process, [], [], None
        self._opened = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=pair) for pair in ((process.stderr, self.said), (process.stdout, self.printed))
        ]
        for reader in self._readers:
            reader.start()
        self._opened.wait(300)
        assert self.url, "".join(self.said)

    def _read(self, stream, lines):
        with stream:
            for line in stream:
                lines.append(line)
                if found := re.search(r"^Open (https?://\S+)", line):
                    self.url = found[1]
                    self._opened.set()
        self._opened.set()

    def interrupt(self):
        """Presses Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds=120):
        """Waits for its end. Returns its exit code and what it printed."""
        self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=seconds)
        return self.process.returncode, "".join(self.printed)


@contextlib.contextmanager
def command(*arguments):
    """The command, listening; killed in the end if it still runs."""
    line = [F2I, "bench", *map(str, arguments), "--device", "web"]
    with heeding_ctrl_c():
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = None
    try:
        started = Command(process)
        yield started
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=60)
        if started:
            started.end()


@contextlib.contextmanager
def server(bundle, folder, natives=None):
    """(server, sessions, URL) on loopback, without the engines' files."""
    opened = open_bundle(bundle)
    plan = make_plan(opened, QUICK, Selection(precision="fp32"), {})
    sessions, token = Sessions(opened, plan, folder, natives or {}), secrets.token_urlsafe(16)
    with serving(WebServer(("127.0.0.1", 0), plan, sessions, token)) as running:
        yield running, sessions, f"http://127.0.0.1:{running.server_address[1]}/{token}/"
