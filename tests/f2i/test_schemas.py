"""The published JSON schemas are what the records say, and refuse what is none of them."""

import jsonschema
import pytest
from published_schema import assert_fits, published

from f2i.schemas import DOCUMENTS, json_schema, write_schemas


@pytest.mark.parametrize("command", DOCUMENTS)
def test_the_committed_schema_is_the_record_s(command):
    assert published(command) == json_schema(command), "write them anew: python -m f2i.schemas docs/schemas"
    jsonschema.Draft202012Validator.check_schema(published(command))


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_schema_refuses_unknown_keys_and_another_schema_s_number(command):
    required = published(command)["required"]
    assert "schema" in required
    with pytest.raises(jsonschema.ValidationError):
        assert_fits(command, {})
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        assert_fits(command, {"surprise": 1})


def test_every_row_says_its_variant_in_three_fields():
    for command in DOCUMENTS:
        for name, record in published(command)["$defs"].items():
            if "target" in record["properties"]:
                assert {"target", "precision", "accelerator"} <= set(record["required"]), (command, name)


def test_schemas_are_written_for_every_command(tmp_path):
    write_schemas(tmp_path / "new")
    assert sorted(p.stem for p in (tmp_path / "new").iterdir()) == sorted(DOCUMENTS)
