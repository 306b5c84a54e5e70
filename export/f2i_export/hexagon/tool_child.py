"""Runs one command and dies with its parent, and the command with it: ``python -m f2i_export.hexagon.tool_child COMMAND…``.

Its parent makes it the leader of a process group. A compiler that is a program of its own would otherwise go on when the export that started it was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from f2i_runtime.child_process import die_with_parent


def _default(number: int) -> None:
    with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
        signal.signal(number, signal.SIG_DFL)


def main(command: list[str]) -> int:
    """Runs the command and returns its exit code, or ends it, and this process, when the parent has gone."""
    die_with_parent(lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
    code = subprocess.run(command, check=False).returncode
    if code < 0:  # ended by a signal: so is this process, for whoever reads its exit code
        _default(-code)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
