"""Writes the page about the ``f2i`` command from the Typer application itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plain_markdown import cell, plain

INTRODUCTION = """# The command

This page is generated from the program at every build of the site; `f2i COMMAND --help` prints the same.

Progress goes to stderr, results to stdout. Exit codes: 0 the command did its work; 1 a check failed; 2 bad usage or bad input, with one line that says
what was got, what was expected and what to do next; 3 the toolchain failed; 130 interrupted, and the same command goes on where it stopped.
"""


def command_page() -> str:
    """Returns the whole page as Markdown: one section for each command, in the order of ``f2i --help``."""
    from typer.main import get_command

    from f2i.cli import app

    group: Any = get_command(app)
    with group.make_context("f2i", [], resilient_parsing=True) as parent:
        sections = [command_section(name, group.get_command(parent, name), parent) for name in group.list_commands(parent)]
    return "\n".join([INTRODUCTION, *sections])


def command_section(name: str, command: Any, parent: Any) -> str:
    """Returns the Markdown section of one command: what it does, how it is called, and a table of what it takes."""
    with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
        usage = " ".join(["f2i", name, *command.collect_usage_pieces(context)])
        rows = [record for p in command.get_params(context) if (record := p.get_help_record(context)) and "--help" not in p.opts]
    lines = [f"## f2i {name}", "", plain(command.help or ""), "", f"    {usage}", ""]
    return "\n".join([*lines, *table(rows), ""])


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Returns a Markdown table of (option, explanation)."""
    body = [f"| `{option}` | {cell(text)} |" for option, text in rows]
    return ["| option | what it does |", "|---|---|", *body] if body else []
