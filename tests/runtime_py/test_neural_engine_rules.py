"""The Neural Engine lint, the operation counts, states, control flow and several functions."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # the name coremltools' own code uses
from coremltools.converters.mil.mil import types
from f2i_runtime.engines.run_coreml import inspect_artifact, lint
from f2i_runtime.mil import load
from f2i_runtime.mil.format.dtypes import BY_NAME
from f2i_runtime.mil.format.program import Block, Function, Operation, Output, ValueType
from f2i_runtime.mil.judge.neural_engine_rules import RULES, lint_function

FIXED = (1, 4, 8, 8)


def package(tmp_path, build, shape=FIXED, precision=ct.precision.FLOAT16, inputs=None, target=ct.target.iOS18):
    """Saves a program of one float input ``x``."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
    def program(x):
        return build(x)

    model = ct.convert(program, inputs=inputs, compute_precision=precision, minimum_deployment_target=target, skip_model_load=True)
    path = tmp_path / "program.mlpackage"
    model.save(str(path))
    return path


def rules(path):
    return {finding.rule.name for finding in lint(path)}


def test_a_convolution_stays_on_the_engine(tmp_path):
    path = package(tmp_path, lambda x: mb.relu(x=mb.conv(x=x, weight=np.ones((4, 4, 3, 3), np.float32), pad_type="same")))
    assert rules(path) == set()


@pytest.mark.parametrize(
    ("rule", "build"),
    [
        ("gather", lambda x: mb.gather(x=x, indices=[2, 1], axis=1)),
        ("dimension", lambda x: mb.relu(x=mb.tile(x=mb.reshape(x=x, shape=[1, 256]), reps=[1, 65]))),
        ("dilation", lambda x: mb.conv(x=x, weight=np.ones((4, 4, 3, 3), np.float32), dilations=[2, 2])),
        ("resampling", lambda x: mb.crop_resize(x=x, boxes=np.float32([[0, 0, 1, 1]]), target_height=2, target_width=2)),
        ("indices", lambda x: mb.topk(x=x, k=2, axis=1)[0]),
    ],
)
def test_each_rule_names_the_place_the_rewrite_and_its_source(rule, build, tmp_path):
    findings = [finding for finding in lint(package(tmp_path, build)) if finding.rule.name == rule]
    assert findings
    assert findings[0].where.startswith("main/")
    assert findings[0].rule == RULES[rule]
    assert findings[0].detail


def test_a_rank_over_five_is_found():
    six = ValueType(BY_NAME["fp16"], (1, 2, 2, 4, 2, 8))
    operation = Operation("reshape", "y", "main/0 reshape 'y'", {"x": ("x",)}, (Output("y", six),))
    block = Block((), [operation], ("y",))
    findings = lint_function(Function("main", 18, (Output("x", ValueType(BY_NAME["fp16"], FIXED)),), block))
    assert [finding.rule.name for finding in findings] == ["rank"]  # coremltools itself refuses to write one


def test_fp32_inside_is_found(tmp_path):
    assert rules(package(tmp_path, lambda x: mb.exp(x=x), precision=ct.precision.FLOAT32)) == {"fp32"}
    half = mb_cast_inside(tmp_path)
    assert {"cast", "fp32"} <= rules(half)


def mb_cast_inside(tmp_path):
    """fp16, one operation kept in fp32, fp16 again."""

    @mb.program(input_specs=[mb.TensorSpec(shape=FIXED)], opset_version=ct.target.iOS18)
    def program(x):
        return mb.tanh(x=mb.exp(x=mb.relu(x=x)), name="result")

    precision = ct.transform.FP16ComputePrecision(op_selector=lambda operation: operation.op_type != "exp")
    model = ct.convert(program, compute_precision=precision, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    path = tmp_path / "inside.mlpackage"
    model.save(str(path))
    return path


def test_a_flexible_shape_is_found_and_still_runs(tmp_path):
    flexible = ct.Shape(shape=(1, ct.RangeDim(2, 9)))
    path = package(tmp_path, lambda x: mb.exp(x=x), (1, get_symbol()), inputs=[ct.TensorType(name="x", shape=flexible)])
    assert "dynamic-shape" in rules(path)
    x = np.linspace(0, 1, 5, dtype=np.float32)[None]
    (y,) = load(path)({"x": x}).values()
    assert np.allclose(y, np.exp(x), rtol=2e-3)


def get_symbol():
    from coremltools.converters.mil.mil import get_new_symbol

    return get_new_symbol()


def test_every_rule_has_a_source_and_a_rewrite():
    for rule in RULES.values():
        assert len(rule.source) > 20
        assert rule.rewrite
        assert rule.reason


def test_inspection_counts_operations_and_bytes(tmp_path):
    path = package(tmp_path, lambda x: mb.relu(x=mb.conv(x=x, weight=np.ones((4, 4, 3, 3), np.float32))))
    found = inspect_artifact(path)
    (function,) = found["functions"].values()
    assert function["operations"] == {"cast": 2, "conv": 1, "relu": 1}
    assert function["opset"] == "iOS18"
    assert function["inputs"] == {"x": "fp32[1, 4, 8, 8]"}
    assert found["weight_bytes"] > 4 * 4 * 9 * 2


def test_control_flow(tmp_path):
    def build(x):
        total = mb.reduce_sum(x=x, axes=[0], keep_dims=False)
        positive = mb.greater(x=total, y=np.float32(0))
        start = mb.cond(pred=positive, _true_fn=lambda: mb.mul(x=x, y=np.float32(2)), _false_fn=lambda: mb.sub(x=x, y=np.float32(1)))

        def body(i, y):
            return mb.add(x=i, y=np.float32(1)), mb.add(x=y, y=x)

        return mb.while_loop(_cond=lambda i, y: mb.less(x=i, y=np.float32(3)), _body=body, loop_vars=(np.float32(0), start))[1]

    path = package(tmp_path, build, (4,), ct.precision.FLOAT32)
    for sign in (1, -1):
        x = sign * np.arange(1, 5, dtype=np.float32)
        (y,) = load(path)({"x": x}).values()
        assert np.allclose(y, (2 * x if sign > 0 else x - 1) + 3 * x)
    assert "control-flow" in rules(path)


def test_state_is_kept_between_calls_that_share_it(tmp_path):
    specs = [mb.TensorSpec(shape=(3,), dtype=types.fp16), mb.StateTensorSpec(shape=(3,), dtype=types.fp16)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, memory):
        return mb.coreml_update_state(state=memory, value=mb.add(x=mb.read_state(input=memory), y=x))

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    path = tmp_path / "state.mlpackage"
    model.save(str(path))
    evaluator = load(path)
    x = {"x": np.float32([1, 2, 3])}
    state = evaluator.new_state()
    for call in (1, 2, 3):
        (y,) = evaluator(x, state=state).values()
        assert np.array_equal(y, call * x["x"])
    (fresh,) = evaluator(x).values()
    assert np.array_equal(fresh, x["x"])


def test_functions_share_a_package(tmp_path):
    paths = []
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        folder = tmp_path / name
        folder.mkdir()
        paths.append(
            (name, package(folder, lambda x, factor=factor: mb.mul(x=x, y=np.float32(factor), name="y"), (4,), ct.precision.FLOAT32))
        )
    description = ct.utils.MultiFunctionDescriptor()
    for name, path in paths:
        description.add_function(str(path), src_function_name="main", target_function_name=name)
    description.default_function_name = "triple"
    both = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(description, str(both))
    x = np.float32([1, 2, 3, 4])
    for function, factor in (("double", 2), ("triple", 3), (None, 3)):
        (y,) = load(both, function=function)({"x": x}).values()
        assert np.allclose(y, factor * x)
    assert list(inspect_artifact(both)["functions"]) == ["triple", "double"]
