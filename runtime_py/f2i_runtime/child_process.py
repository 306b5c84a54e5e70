"""Starting our own modules as child processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

_LAUNCH = "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python_child(module: str) -> list[str]:
    """Returns the command that runs ``module`` as ``python -m`` would, but never finds a module in the working folder.

    ``-m`` looks there first, where a user's ``torch.py`` or ``benchmarks/`` would be imported instead of ours.
    """
    return [sys.executable, "-c", _LAUNCH, module]


def _exit() -> None:
    os._exit(1)


def die_with_parent(end: Callable[[], None] = _exit) -> None:
    """Ends this process, or does what ``end`` does, when its parent has gone, because nobody would collect the result."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, daemon=True).start()
