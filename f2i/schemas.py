"""The published JSON schemas, made from the records: ``python -m f2i.schemas docs/schemas`` writes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from f2i_bench.core.protocol import BenchReport
from f2i_bench.npu.estimate_records import EstimateReport
from f2i_runtime.records import Document
from f2i_runtime.validation.results import Report

from f2i.inspection import Inspection

DOCUMENTS: dict[str, type[Document]] = {"validate": Report, "inspect": Inspection, "bench": BenchReport, "estimate": EstimateReport}
"""Command → what its ``--json`` is."""


def json_schema(command: str) -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of what ``f2i COMMAND --json`` writes."""
    schema = DOCUMENTS[command].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"f2i {command} --json"}


def write_schemas(folder: Path) -> None:
    """Write ``COMMAND.json`` for every command into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in DOCUMENTS:
        (folder / f"{command}.json").write_text(json.dumps(json_schema(command), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
