"""Writes the page about the JSON that ``f2i`` prints, from the published schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plain_markdown import cell

INTRODUCTION = """# JSON schemas

This page is generated from the schemas at every build of the site. They are JSON Schema documents, made from the records that the program writes; a
field that does not apply is null.
"""


def schema_page(folder: Path) -> str:
    """Returns the page as Markdown: for each schema in ``folder`` a link to the file and a table for each of its records."""
    sections = [schema_section(path) for path in sorted(folder.glob("*.json"))]
    return "\n".join([INTRODUCTION, *sections])


def schema_section(path: Path) -> str:
    """Returns the section of one schema file."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"## {schema.get('title', path.stem)}", "", f"The schema: [`{path.name}`](schemas/{path.name})", "", *record(schema)]
    for name, definition in sorted(schema.get("$defs", {}).items()):
        if "properties" in definition:
            parts += [f"### {name}", "", *record(definition)]
    return "\n".join(parts)


def record(schema: dict[str, Any]) -> list[str]:
    """Returns what one record is and the table of its fields."""
    required = set(schema.get("required", ()))
    rows = [
        f"| `{field}` | {kind(value)} | {'yes' if field in required else 'no'} | {cell(value.get('description', ''))} |"
        for field, value in schema["properties"].items()
    ]
    return [cell(schema.get("description", "")), "", "| field | type | always there | meaning |", "|---|---|---|---|", *rows, ""]


def kind(schema: dict[str, Any]) -> str:
    """Returns a field's type in words, e.g. ``number or null``, ``list of Gate``."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"list of {kind(items)}" if items else "list"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {kind(values)}" if isinstance(values, dict) else "object"
    return str(schema.get("type", "any"))
