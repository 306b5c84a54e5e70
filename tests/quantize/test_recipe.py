"""Recipes: the presets, strict parsing, and rules that must match."""

import pytest
from f2i_quantize.ptq.recipe import Layer, load_recipe, parse_recipe, preset_names
from f2i_runtime.errors import UsageError

LAYERS = [
    Layer("unet", "conv_in", "conv2d", "first", (8, 3, 3, 3)),
    Layer("unet", "block.attn2.key", "linear", "inside", (8, 8)),
    Layer("unet", "block.attn1.key", "linear", "inside", (8, 8)),
    Layer("unet", "conv_out", "conv2d", "last", (3, 8, 3, 3)),
]
RULE = {"weights": "int8", "activations": "int8"}


def test_every_preset_loads_and_has_its_own_hash():
    recipes = [load_recipe(name) for name in preset_names()]
    assert {r.precision for r in recipes} == {"w8", "w8a8", "w8a8-mixed", "w8a16", "p8", "p6", "p4"}
    assert len({r.sha256() for r in recipes}) == len(recipes)


def test_default_leaves_the_edges_and_cross_attention_keys_in_float():
    rules = load_recipe("w8a8").resolve(LAYERS)
    assert {layer.path: rules[layer.name].weights for layer in LAYERS} == {
        "conv_in": "float",
        "block.attn2.key": "float",
        "block.attn1.key": "int8",
        "conv_out": "float",
    }


def test_last_match_wins():
    recipe = parse_recipe({"name": "r", "precision": "w8a8", "rules": [RULE, {"match": "*key", "weights": "float"}]}, "r")
    assert [recipe.resolve(LAYERS)[layer.name].weights for layer in LAYERS] == ["int8", "float", "float", "int8"]


def test_rule_that_matches_nothing_is_an_error():
    recipe = parse_recipe({"name": "r", "precision": "w8a8", "rules": [RULE, {"match": "unet/*.conv_inn", "weights": "float"}]}, "r")
    with pytest.raises(UsageError, match=r"rule 2 .*conv_inn.* matches none of 4 layers"):
        recipe.resolve(LAYERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precison": "w8a8"}, "precison: Extra inputs are not permitted; known keys: name"),
        ({"rules": [{**RULE, "macth": "*"}]}, r"rules\.0\.macth: Extra inputs"),
        ({"rules": []}, "rules: .*at least 1 item"),
        ({"percentile": 20}, "percentile: "),
    ],
)
def test_bad_recipe_is_one_line(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_recipe({"name": "r", "precision": "w8a8", "rules": [RULE], **change}, "my.toml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("my.toml: ")


def test_hash_ignores_the_description_only():
    data = {"name": "r", "precision": "w8a8", "rules": [RULE]}
    base = parse_recipe(data, "r").sha256()
    assert parse_recipe({**data, "description": "x"}, "r").sha256() == base != parse_recipe({**data, "seed": 1}, "r").sha256()
