"""What a browser is called, from what it says of itself."""

from __future__ import annotations

import re

from f2i_bench.devices.web.web_records import Arrival

BROWSERS = (
    ("Edge", r"Edg(?:A|iOS)?/(\d+)"),
    ("Opera", r"OPR/(\d+)"),
    ("Samsung Internet", r"SamsungBrowser/(\d+)"),
    ("Firefox", r"(?:Firefox|FxiOS)/(\d+)"),
    ("Chrome", r"(?:Chrome|CriOS)/(\d+)"),
    ("Safari", r"Version/(\d+[.\d]*).* Safari/"),
)
"""Names and patterns of user agents, what imitates another first."""
SYSTEMS = (
    ("Android", r"Android (\d+[.\d]*)"),
    ("iOS", r"(?:iPhone|iPad).* OS (\d+[_\d]*)"),
    ("macOS", r"Mac OS X"),
    ("ChromeOS", r"CrOS"),
    ("Windows", r"Windows NT"),
    ("Linux", r"Linux|X11"),
)


def browser_name(arrival: Arrival) -> str:
    """Returns the browser's name and version: ``Chrome 156``."""
    return _first(BROWSERS, arrival.user_agent) or "an unknown browser"


def system_name(arrival: Arrival) -> str:
    """Returns the system's name, and its version where the browser says it: ``Android 14``."""
    return _first(SYSTEMS, arrival.user_agent) or arrival.platform or "an unknown system"


def device_name(arrival: Arrival) -> str:
    """Returns what stands in tables: ``browser on Pixel 8, Android 14 (Chrome 156)``."""
    where = f"{arrival.model}, {system_name(arrival)}" if arrival.model else system_name(arrival)
    return f"browser on {where} ({browser_name(arrival)})"


def _first(table: tuple[tuple[str, str], ...], text: str) -> str:
    for name, pattern in table:
        if found := re.search(pattern, text):
            return " ".join([name, *(part.replace("_", ".") for part in found.groups())])
    return ""
