"""The JSON schemas that the documents publish, as a reader of our JSON uses them."""

import json

import jsonschema
from repository import ROOT


def published(command):
    """The committed schema of a command's JSON."""
    return json.loads((ROOT / "docs" / "schemas" / f"{command}.json").read_text(encoding="utf-8"))


def assert_fits(command, data):
    """Fails with the first place where the data is not what the schema says."""
    jsonschema.Draft202012Validator(published(command)).validate(data)
