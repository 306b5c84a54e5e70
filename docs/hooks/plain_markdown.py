"""Text of docstrings and help as Markdown."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Returns a docstring or help text without marks that Markdown does not know: roles, double backquotes, Click's line breaks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").replace("\b", "").strip()


def cell(text: str) -> str:
    """Returns ``text`` for one cell of a Markdown table."""
    return " ".join(plain(text).split()).replace("|", "\\|").replace("<", "&lt;")
