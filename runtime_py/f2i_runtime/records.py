"""What all published results have in common: immutable records with a schema number, written as JSON and read back with a clear line when they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from f2i_runtime.errors import UsageError
from f2i_runtime.targets import CPU, Variant
from f2i_runtime.text_files import read_text_file


class Record(BaseModel):
    """Base of the records: immutable, unknown keys are refused, and every number is finite or null."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, json_schema_serialization_defaults_required=True, use_attribute_docstrings=True
    )


class VariantRow(Record):
    """Base of the rows that are about one variant."""

    target: str
    precision: str
    accelerator: str = CPU

    @property
    def variant(self) -> Variant:
        """The three fields as one value."""
        return Variant(self.target, self.precision, self.accelerator)


class Document(Record):
    """Base of the records that are a whole file. A document has a field ``schema_version``, which JSON calls ``schema``."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    def as_json(self) -> dict[str, Any]:
        """Returns what is written to the file: plain dictionaries, lists, strings and finite numbers."""
        return self.model_dump(mode="json", by_alias=True)


AnyDocument = TypeVar("AnyDocument", bound=Document)


def read_document(path: Path, kind: type[AnyDocument], command: str) -> AnyDocument:
    """Returns the document that ``command`` wrote to ``path``.

    Raises UsageError with one line: the file cannot be read, another schema wrote it, or the first field that is wrong.
    """
    expected = f"expected what {command} writes"
    try:
        data = json.loads(read_text_file(path))
    except ValueError as e:
        raise UsageError(f"{path}: cannot be read as JSON: {e}; {expected}") from e
    number = kind.model_fields["schema_version"].default
    found = data.get("schema") if isinstance(data, dict) else None
    if found != number:
        said = "it names no schema" if found is None else f"it was written with schema {found!r}"
        raise UsageError(f"{path}: {said}, and this version reads schema {number}; write it again with {command}")
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where + ': ' if where else ''}{first['msg']}; {expected} (schema {number})") from e
