"""Recipes: which layers are quantized, how their scales are found, and with what photos; a TOML file of rules, read strictly.

A rule names layers by a glob over ``component/module.path`` of the rewritten model, by kind of op and by position; the last rule that matches a layer
decides. A rule that matches nothing is an error, so that a misspelt path never leaves a layer as it was, silently.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from f2i_runtime.errors import UsageError
from f2i_runtime.text_files import read_text_file
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "recipes"

Op = Literal["conv2d", "linear"]
WeightKind = Literal["float", "int8", "palette8", "palette6", "palette4"]
ActivationKind = Literal["float", "int8", "int16"]
QuantizedPrecision = Literal["w8", "w8a8", "w8a8-mixed", "w8a16", "p8", "p6", "p4"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear of a rewritten component, in the order in which the graph runs them."""

    component: str
    path: str
    op: Op
    position: Literal["first", "last", "inside"]
    weight_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Returns the name that rules match: ``component/module.path``."""
        return f"{self.component}/{self.path}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """The rule for the layers that all three of ``match``, ``ops`` and ``position`` select."""

    match: str = "*"
    """Glob over ``component/module.path``; ``*`` crosses dots."""
    ops: tuple[Op, ...] = ("conv2d", "linear")
    position: tuple[Literal["first", "last", "inside"], ...] = ("first", "last", "inside")
    """The position of the layer in its component's graph."""
    weights: WeightKind
    activations: ActivationKind = "float"
    optional: bool = False
    """Whether the rule may match nothing: for parts that not every model has."""

    def selects(self, layer: Layer) -> bool:
        """Returns whether this rule applies to ``layer``."""
        return layer.op in self.ops and layer.position in self.position and fnmatchcase(layer.name, self.match)


class Smoothing(_Strict):
    """SmoothQuant (Xiao et al., arXiv 2211.10438, eq. 4): per-channel scales move from a norm's output into the linears that read it."""

    match: str = "feature_encoder/*"
    alpha: float = Field(default=0.5, ge=0, le=1)


class Qat(_Strict):
    """Quantization-aware training: a short fine-tune of the quantized layers against the float model's output, gradients straight through the rounding."""

    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=4, ge=1)
    """Crops per step and process."""
    crop: int = Field(default=64, ge=16)
    """Side of a low-resolution crop, pixels."""
    lr: float = Field(default=1e-5, gt=0)
    """Highest learning rate of weights and biases; a cosine takes it to a hundredth."""
    scale_lr: float = Field(default=1e-4, ge=0)
    """The highest learning rate of the scales of weights and activations, as factors of what calibration found (LSQ, Esser et al., arXiv 1902.08153);
    0 keeps the scales.
    """
    components: tuple[str, ...] = ()
    """Which components are trained; none: all that have quantized layers."""


class Recipe(_Strict):
    """A whole recipe. Everything that shapes the numbers is here, so that its hash names them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    description: str = ""
    precision: QuantizedPrecision
    rules: tuple[Rule, ...] = Field(min_length=1)
    activation_observer: Literal["minmax", "percentile", "mse"] = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of values, in percent, that the percentile observer keeps inside the range."""
    weight_observer: Literal["minmax", "mse"] = "mse"
    rounding: Literal["nearest", "gptq"] = "nearest"
    """How weights are rounded: each to its nearest value, or one column after another, each making up for the error of those before
    (:mod:`f2i_quantize.ptq.gptq`).
    """
    bias_correction: bool = True
    smoothing: tuple[Smoothing, ...] = ()
    split_skips: bool = False
    """Whether convolutions of a skip concatenation are cut in two, each half with a scale of its own (:mod:`f2i_quantize.rewrites.split_skips`)."""
    tiles: int = Field(default=32, ge=1, le=4096)
    """The number of calibration tiles."""
    seed: int = Field(default=0, ge=0)
    target_psnr: float | None = Field(default=None, gt=0, le=200)
    """Layers are left float until the tile's output has this PSNR in dB to the float model's; those chosen become rules (:mod:`f2i_quantize.ptq.mixed`)."""
    qat: Qat | None = None

    def sha256(self) -> str:
        """The hash of everything except the description."""
        content = self.model_dump(mode="json", exclude={"description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def resolve(self, layers: Sequence[Layer]) -> dict[str, Rule]:
        """Layer name → the last rule that matches it; layers that no rule selects are absent.

        Raises UsageError for a rule that matches no layer, with the nearest there is.
        """
        chosen: dict[str, Rule] = {}
        for number, rule in enumerate(self.rules, 1):
            found = [layer.name for layer in layers if rule.selects(layer)]
            if not found and not rule.optional:
                some = ", ".join(layer.name for layer in list(layers)[:3])
                raise UsageError(
                    f"recipe {self.name}: rule {number} (match {rule.match!r}, ops {'/'.join(rule.ops)}) matches none of {len(layers)} layers, "
                    f"such as {some}; mend its pattern or say optional = true"
                )
            chosen |= dict.fromkeys(found, rule)
        return chosen


def preset_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_recipe(source: str) -> Recipe:
    """A preset by name, or a TOML file. Raises UsageError with one line that names the file and the first offending key."""
    path = Path(source)
    if not path.suffix and source in preset_names():
        path = PRESETS / f"{source}.toml"
    if not path.is_file():
        raise UsageError(f"recipe {source!r}: no such file, and not one of the presets {', '.join(preset_names())}")
    try:
        data = tomllib.loads(read_text_file(path))
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path}: not readable as TOML: {e}") from e
    return parse_recipe({"name": path.stem, **data}, str(path))


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """A recipe from its keys. Raises UsageError naming ``source`` and the key."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        known = (
            ""
            if first["type"] != "extra_forbidden"
            else f"; known keys: {', '.join(Rule.model_fields if 'rules' in where else Recipe.model_fields)}"
        )
        raise UsageError(f"{source}: {where}: {first['msg']}{known}") from e


def with_options(
    recipe: Recipe,
    *,
    target_psnr: float | None = None,
    rounding: str | None = None,
    qat: bool = False,
    qat_steps: int | None = None,
    tiles: int | None = None,
) -> Recipe:
    """The recipe with what the command line says instead. Raises UsageError for an option that the recipe has no use for."""
    if target_psnr is not None and recipe.precision != "w8a8-mixed":
        raise UsageError(f"--target-psnr is for recipes of precision w8a8-mixed, got {recipe.name} of precision {recipe.precision}")
    if qat_steps is not None and not (qat or recipe.qat):
        raise UsageError("--steps is for --qat; give both, or neither")
    changed: dict[str, Any] = {}
    if target_psnr is not None:
        changed["target_psnr"] = target_psnr
    if rounding is not None:
        changed["rounding"] = rounding
    if tiles is not None:
        changed["tiles"] = tiles
    if qat or recipe.qat:
        changed["qat"] = (recipe.qat or Qat()).model_dump() | ({} if qat_steps is None else {"steps": qat_steps})
    return parse_recipe(recipe.model_dump(mode="json") | changed, f"recipe {recipe.name}") if changed else recipe
