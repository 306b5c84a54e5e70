"""The description of one quantized precision of a checkpoint, without its tensors and without torch: what a plan and a manifest need."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.text_files import read_text_file

from f2i_quantize.ptq.recipe import Recipe, Rule, parse_recipe

FOLDER = "quantization"
SCHEMA = 1


@dataclass(frozen=True)
class QuantizationRecord:
    """What ``quantization/<precision>.json`` says. ``sha256`` is the hash of that text, which stands for the tensors too: it names theirs."""

    recipe: Recipe
    rules: dict[str, Rule]
    """Layer name → its rule, for every layer that a rule selects."""
    calibration: dict[str, Any]
    sha256: str
    tensors: Path
    tensors_sha256: str

    def has_integers(self) -> bool:
        """Whether any weight is int8, so that there is a QDQ graph."""
        return any(rule.weights == "int8" for rule in self.rules.values())

    def check_tensors(self) -> None:
        """Reads and hashes the file of tensors. Raises CheckpointError where it is not the one that the description names."""
        if not self.tensors.is_file() or sha256_file(self.tensors) != self.tensors_sha256:
            name = self.tensors.with_suffix(".json").name
            raise CheckpointError(f"{self.tensors}: missing, or not the file that {name} names; quantize the checkpoint again")


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe in full with its hash, as manifests carry it."""
    return {**recipe.model_dump(mode="json"), "sha256": recipe.sha256()}


def available(checkpoint: str | Path) -> list[str]:
    """Returns the precisions that a checkpoint was quantized to."""
    return sorted(path.stem for path in (Path(checkpoint) / FOLDER).glob("*.json"))


def read_record(checkpoint: str | Path, precision: str) -> QuantizationRecord:
    """Returns the description of one precision; its tensors are not touched.

    Raises UsageError where there is none, with the command that makes one, CheckpointError where it is damaged.
    """
    path = Path(checkpoint) / FOLDER / f"{precision}.json"
    if not path.is_file():
        have = ", ".join(available(checkpoint)) or "no quantized precision"
        raise UsageError(
            f"{checkpoint}: it is not quantized to {precision} (it holds {have}); run: f2i quantize {checkpoint} --recipe {precision} --out QUANTIZED, "
            "and export QUANTIZED"
        )
    try:
        content = read_text_file(path)
        data = json.loads(content)
        found = (data["schema"], data["precision"], data["recipe_sha256"])
        recipe = parse_recipe(data["recipe"], str(path))
        rules = {k: Rule.model_validate(v) for k, v in data["layers"].items()}
        record = QuantizationRecord(
            recipe,
            rules,
            data["calibration"],
            hashlib.sha256(content.encode()).hexdigest(),
            path.with_suffix(".safetensors"),
            data["tensors_sha256"],
        )
    except (UsageError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: not a description of a quantization: {type(e).__name__}: {str(e).splitlines()[0]}") from e
    if found != (SCHEMA, precision, recipe.sha256()):
        raise CheckpointError(f"{path}: schema, precision or recipe hash do not fit; quantize the checkpoint again")
    return record
