"""A phone made of a real ``adbd`` on loopback, in a network and mount namespace of its own (adbd listens on every address without authentication).

Run under ``unshare`` by :func:`start`; prints a line when it serves, ends when its stdin does.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "f2i" / "adb-34"
LIBRARY = "usr/lib/x86_64-linux-gnu"
TOOLS = "usr/lib/android-sdk/platform-tools"
# What every Linux has, and what must not be another than the running one's.
OWN = ("libc6", "libgcc-s1", "gcc-12-base", "libstdc++6", "android-udev-rules", "debconf", "libcrypt1")


@dataclass(frozen=True)
class FakePhone:
    """``adb``: the command that reaches it; ``storage``: where it keeps things; ``full``: a folder of a megabyte; ``python``: one it has."""

    adb: tuple
    storage: Path
    full: Path
    python: Path
    process: subprocess.Popen

    def connect(self, *serials):
        for serial in serials:
            subprocess.run([*self.adb, "connect", serial], check=True, capture_output=True, timeout=60)

    def disconnect(self, serial):
        subprocess.run([*self.adb, "disconnect", serial], check=True, capture_output=True, timeout=60)


def fetch():
    """Debian's adb and adbd 34, unpacked once."""
    from f2i_runtime.debian import closure, package_list, unpack

    if not CACHE.exists():
        unpack(closure(["adb", "adbd"], [package_list("bookworm-backports", "amd64"), package_list("bookworm", "amd64")], OWN), CACHE)


@contextlib.contextmanager
def start(folder):
    """A running phone. Raises RuntimeError with the reason where the kernel grants no namespaces."""
    fetch()
    storage, full, home = (folder / name for name in ("storage", "full", "home"))
    for path in (storage, full, home):
        path.mkdir()
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nunset LD_LIBRARY_PATH\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", "--net", "--mount", *user, sys.executable, str(HERE), str(full), str(folder / "adbd.log")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(home))
    said = process.stdout.readline().decode().strip()
    if said != "serving":
        raise RuntimeError(f"no fake phone: {said or process.wait()}; the kernel must grant user or root namespaces (unshare --net)")
    enter = ["nsenter", "--target", str(process.pid), "--net", "--mount", *(["--user", "--preserve-credentials"] if user else [])]
    inside = [f"{k}={v}" for k, v in environment(home).items() if k in {"HOME", "LD_LIBRARY_PATH"}]
    phone = FakePhone((*enter, "env", *inside, str(CACHE / TOOLS / "adb")), storage, full, python, process)
    try:
        phone.connect("127.0.0.1:5555", "127.0.0.2:5555")
        yield phone
    finally:
        subprocess.run([*phone.adb, "kill-server"], capture_output=True, timeout=60)
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=20)


def environment(home):
    path = f"{CACHE / LIBRARY / 'android'}:{CACHE / LIBRARY}"
    # The folder of the cache is found from HOME, which is another one in there.
    return {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(CACHE.parents[1]), "LD_LIBRARY_PATH": path, "ADB_MDNS": "0"}


def serve(full, log):
    """Inside the namespaces: loopback up, a small disk, adbd."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", full], check=True)
    said = False
    with open(log, "wb") as file:
        while True:  # a daemon that is killed comes back, as a phone that reboots
            with subprocess.Popen([str(CACHE / TOOLS / "adbd")], stdout=file, stderr=file, cwd="/") as daemon:
                for _ in range(100):
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 5555), timeout=1):
                        break
                    time.sleep(0.1)
                if not said:
                    sys.stdout.write("serving\n")
                    sys.stdout.flush()
                    said = True
                while daemon.poll() is None:
                    if select.select([sys.stdin], [], [], 0.2)[0]:
                        daemon.kill()
                        return


if __name__ == "__main__":
    serve(*sys.argv[1:])
