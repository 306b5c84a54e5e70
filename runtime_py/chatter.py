"""What engines' C++ writes to stderr while they load, kept from the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

CHATTER = re.compile(rb"INFO: |\[\w+\.cpp:\d+\] ")
"""How lines of LiteRT's and of ExecuTorch's begin that say no more than that they work."""


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Drop such lines where ``$TF_CPP_MIN_LOG_LEVEL`` wants none (neither engine heeds it). The rest arrives at the end; all of it after an error."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0" or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        dropped = None
        try:
            yield
            dropped = CHATTER
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            heard.seek(0)
            os.write(2, b"".join(line for line in heard if dropped is None or not dropped.match(line)))
