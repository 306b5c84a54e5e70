"""Writes the page about ``import f2i`` from the docstrings of its functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from plain_markdown import plain

CLOSING = """Core ML models of your own on Linux: [`f2i.coreml_on_linux`](core-ml-on-linux.md). This page is generated from the functions at every build of the site.
"""
SECTIONS = ("Args:", "Returns:", "Raises:")


def python_page() -> str:
    """Returns the page as Markdown: what :mod:`f2i.api` says about itself, and one section for each of its public functions."""
    from f2i import api

    functions = [(name, getattr(api, name)) for name in api.__all__ if inspect.isfunction(getattr(api, name))]
    sections = [function_section(name, function) for name, function in functions]
    return "\n".join(["# From Python", "", markdown(inspect.getdoc(api) or ""), "", CLOSING, *sections])


def function_section(name: str, function: Callable[..., object]) -> str:
    """Returns the Markdown section of one function: its signature and its docstring."""
    signature = inspect.signature(function)
    parameters = [f"        {spelt(parameter)}," for parameter in signature.parameters.values()]
    keyword = next((i for i, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
    if keyword is not None:
        parameters.insert(keyword, "        *,")
    returned = signature.return_annotation
    code = ["    def " + name + "(", *parameters, f"    ) -> {returned}"] if parameters else [f"    def {name}() -> {returned}"]
    return "\n".join([f"## f2i.{name}", "", *code, "", markdown(inspect.getdoc(function) or ""), ""])


def spelt(parameter: inspect.Parameter) -> str:
    """Returns a parameter as its function declares it; annotations are strings there, and are given without quotes."""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


def markdown(docstring: str) -> str:
    """Returns a docstring of Google's style as Markdown: sections with bold names, their entries as a list."""
    lines: list[str] = []
    section = ""
    for line in plain(docstring).splitlines():
        if line in SECTIONS:
            section = line
            lines += ["", f"**{line.removesuffix(':')}**", ""]
        elif section and line.startswith("    "):
            lines.append(entry(line.strip(), section))
        else:
            lines.append(line)
    return "\n".join(lines)


def entry(line: str, section: str) -> str:
    """Returns one line of a section: a list item where it begins with a name and a colon, otherwise plain text."""
    named = re.match(r"([\w.]+(?:, [\w.]+)*): (.*)", line)
    return f"- `{named[1]}`: {named[2]}" if named and section != "Returns:" else line
