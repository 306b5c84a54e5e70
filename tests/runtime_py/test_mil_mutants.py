"""Operations made wrong by 1 %: our own comparisons notice, and so does the judge of the conformance run."""

import numpy as np
import pytest
import torch
from f2i_runtime.mil.conformance.coremltools_plugin import needed_tolerance
from f2i_runtime.mil.conformance.mutants import _assign, operations
from f2i_runtime.mil.conformance.mutate import mutated
from f2i_runtime.mil.conformance.outcomes import judged, read_lines, score, within
from mil_programs import evaluated, inferred

RANDOM = np.random.default_rng(0)
POSITIVE, OTHER = (RANDOM.uniform(0.3, 0.9, (3, 4)).astype(np.float32) for _ in range(2))
SIGNED = RANDOM.standard_normal((3, 4)).astype(np.float32)
UNARY = (
    "abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "inverse", "log", "relu", "relu6", "round",
    "rsqrt", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "sqrt", "square", "tan", "tanh",
)  # fmt: skip
BINARY = ("add", "floor_div", "greater", "less_equal", "maximum", "minimum", "mod", "mul", "not_equal", "pow", "real_div", "sub")
REDUCTIONS = ("l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")
SCALE = {"ceil": 3, "floor": 9, "round": 9, "floor_div": 9}
CASES = {
    **{name: {"x": POSITIVE * SCALE.get(name, 1)} for name in UNARY},
    **{name: {"x": POSITIVE * SCALE.get(name, 1), "y": OTHER} for name in BINARY},
    "fill": {"shape": [2, 3], "value": 0.5},
    **{f"reduce_{name}": {"x": POSITIVE, "axes": [1], "keep_dims": True} for name in REDUCTIONS},
}


def differs(name):
    got, want = evaluated(name, **CASES[name]), inferred(name, **CASES[name])
    return needed_tolerance(got, want) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_a_mutation_is_noticed(name):
    assert not differs(name)
    with mutated(name):
        assert differs(name)
    assert not differs(name)


# Two boxes that overlap by a third and one apart; the second of the two scores less.
BOXES = np.float32([[0.5, 0.5, 1, 1], [1.0, 0.5, 1, 1], [5, 5, 2, 2]])
SCORES = np.float32([[0.9, 0.1], [0.8, 0.2], [0.3, 0.6]])


def suppressed():
    boxes, scores, index, count = evaluated(
        "non_maximum_suppression", boxes=BOXES[None], scores=SCORES[None], iou_threshold=0.3, score_threshold=0.1, max_boxes=3
    )
    return boxes[0], scores[0], index[0].tolist(), count.tolist()


def test_overlapping_boxes_are_suppressed():
    boxes, scores, index, count = suppressed()
    assert index == [0, 2, -1] and count == [2]
    np.testing.assert_array_equal(boxes, [*BOXES[[0, 2]], [0] * 4])
    np.testing.assert_array_equal(scores, [*SCORES[[0, 2]], [0] * 2])
    with mutated("non_maximum_suppression"):
        boxes, _, _, count = suppressed()
    assert count == [3] and needed_tolerance(boxes[:2], BOXES[[0, 2]]) > 1e-3


def test_classify_names_the_likeliest():
    from f2i_runtime.mil.ops.optable import implementation

    best, by_class = implementation("classify", 15, "test")(torch.tensor([0.2, 0.5, 0.3]), ["cat", "dog", "bird"])
    assert best == "dog"
    assert by_class == pytest.approx({"cat": 0.2, "dog": 0.5, "bird": 0.3})


@pytest.mark.parametrize(
    ("actual", "desired", "needed"),
    [([1.0], [1.0], 0), ([1.01], [1.0], 0.005), ([3.0], [1.0], 1), ([np.nan], [np.nan], 0), ([np.inf], [np.inf], 0), ([1.0, 2], [1.0, 2, 3], np.inf),
     ([np.nan], [1.0], np.inf), ([], [], 0), ([True], [False], 1)],
)  # fmt: skip
def test_the_tolerance_a_comparison_needs(actual, desired, needed):
    assert needed_tolerance(actual, desired) == pytest.approx(needed)
    if 0 < needed < np.inf:
        np.testing.assert_allclose(actual, desired, rtol=needed * 1.001, atol=needed * 1.001)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(actual, desired, rtol=needed * 0.99, atol=needed * 0.99)


def line(test, outcome="passed", needed=1e-4, **more):
    return {"test": test, "outcome": outcome, "needed": needed, "old_format": False, "predicted": 1, "operations": ["conv"], **more}


def test_a_judge_must_have_held_the_tight_tolerance():
    assert within(line("a"), 1e-3) and within(line("exact", needed=None), 1e-3)
    assert not within(line("loose", needed=5e-3), 1e-3) and not within(line("failed", "failed"), 1e-3)
    assert judged(line("a")) and not judged(line("old", old_format=True)) and not judged(line("built", predicted=0))
    lines = [line("a"), line("loose", needed=5e-3), line("failed", "failed")]
    assert (str(score(lines)), str(score(lines, 1e-3))) == ("2 of 3 (66.67%)", "1 of 3 (33.33%)")


def test_the_rarest_operation_gets_its_judges_first():
    chosen = _assign({"add": ["a", "b", "c"], "rare": ["a"]})
    assert chosen == {"a": "rare", "b": "add", "c": "add"}


def test_every_operation_but_random_ones_is_mutated():
    assert {"conv", "lstm", "constexpr_lut_to_dense", *CASES} <= set(operations())
    assert not any(name.startswith("random") for name in operations())


def test_results_cut_short_by_a_kill_are_read_up_to_there(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"test": "a"}\n{"test": "b"')
    assert read_lines(file) == [{"test": "a"}]
    assert read_lines(tmp_path / "none.jsonl") == []
