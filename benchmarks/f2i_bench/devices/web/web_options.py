"""The options of ``f2i bench --device web``, and what it says to a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WebOptions:
    """Who may open the page, and for how long. ``port`` 0: any free one; ``browsers`` 0: until the minutes are over or Ctrl-C."""

    lan: bool = False
    https: bool = False
    adb: bool = False
    minutes: float = 30.0
    port: int = 0
    browsers: int = 0


@dataclass(frozen=True)
class Address:
    """What is shown to a person: the address with its token, a QR code in lines of half blocks (empty: none), and what they need to know."""

    url: str
    qr: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
