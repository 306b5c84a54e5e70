"""Where the repository is, and the command as a user starts it."""

import contextlib
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
F2I = str(Path(sys.executable).with_name("f2i"))
"""The installed command."""


@contextlib.contextmanager
def heeding_ctrl_c():
    """A process that is started in here heeds Ctrl-C: a suite that a shell runs in the background has it ignored, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
