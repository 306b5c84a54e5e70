"""What a child tells its parent while it works: one JSON object a line, through a pipe."""

from __future__ import annotations

import json
import os
import time

from f2i_runtime.memory import peak_rss


def tell(events: int, event: dict[str, object]) -> None:
    """Sends one line of JSON to the parent, through the file descriptor ``events``."""
    os.write(events, (json.dumps(event) + "\n").encode())


class Stages:
    """Times the stages of job number ``index`` and tells the parent which one has begun."""

    def __init__(self, events: int, index: int) -> None:
        self.events, self.index, self.began, self.name = events, index, time.monotonic(), ""
        self.done: list[dict[str, object]] = []

    def begin(self, name: str) -> None:
        """End the current stage and begin the next; an empty name only ends."""
        now = time.monotonic()
        if self.name:
            self.done.append({"name": self.name, "seconds": round(now - self.began, 3), "peak_rss_bytes": peak_rss(forget=True)})
        self.name, self.began = name, now
        if name:
            tell(self.events, {"job": self.index, "stage": name})
