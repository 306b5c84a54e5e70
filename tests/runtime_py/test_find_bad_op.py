"""Diagnosis: the first wrong operation, the fewest to keep in float32, and what numbers do not show."""

import coremltools as ct
import numpy as np
import pytest
import torch
from f2i_runtime.errors import MilError
from f2i_runtime.mil import load
from f2i_runtime.mil.judge.attribute_audit import audit_attributes
from f2i_runtime.mil.judge.find_bad_op import find_bad_op, keep_fp32
from f2i_runtime.mil.judge.op_errors import base_name, pair_values, relative_l2, sqnr_db
from f2i_runtime.mil.judge.weight_audit import audit_weights, package_weights
from mil_programs import Net, sample

X = {"x": sample()}


def save(net, path, shape=(1, 3, 8, 8), precision=ct.precision.FLOAT32, mutate=None):
    """Exports and converts ``net``; ``mutate`` changes the protobuf before it is saved. Returns the program it was converted from."""
    program = torch.export.export(net, (torch.zeros(shape),)).run_decompositions({})
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, compute_precision=precision, skip_model_load=True)
    if mutate is not None:
        spec = model.get_spec()
        (function,) = spec.mlProgram.functions.values()
        mutate(function.block_specializations[function.opset])
        model = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    model.save(str(path))
    return program


def constant(block, operation, key):
    """The literal that feeds input ``key`` of the first operation of a type."""
    found = next(item for item in block.operations if item.type == operation)
    name = found.inputs[key].arguments[0].name
    return next(item for item in block.operations if item.outputs[0].name == name).attributes["val"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A package nothing is wrong with, and its program."""
    path = tmp_path_factory.mktemp("whole") / "net.mlpackage"
    return path, save(Net().eval(), path)


def test_a_sound_package_is_within_its_band_at_every_operation(whole):
    report = find_bad_op(*whole, X)
    assert report.first is None
    assert report.sqnr_db > 110
    assert report.matched >= 15
    assert max(item.rel_l2 for item in report.comparisons) < 1e-5
    assert any(item.module == "conv (Conv2d)" for item in report.comparisons)


def test_fp16_is_within_its_band_and_the_whole_says_what_it_costs(tmp_path):
    path = tmp_path / "net.mlpackage"
    program = save(Net().eval(), path, precision=ct.precision.FLOAT16)
    report = find_bad_op(path, program, X)
    assert report.first is None
    assert 45 < report.sqnr_db < 90


class Peaked(torch.nn.Module):
    """A softmax of logits near 100, where neighbouring fp16 values are a 16th apart; ``scale`` is a wrong one when not 1."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return torch.softmax((x.flatten(2) + 100) * self.scale, -1)


def test_what_rounding_logits_costs_is_not_the_softmax_s_fault_but_a_wrong_logit_is(tmp_path):
    path = tmp_path / "net.mlpackage"
    program = save(Peaked(), path, precision=ct.precision.FLOAT16)
    report = find_bad_op(path, program, X)
    assert report.first is None and report.worst.rel_l2 < 2e-3
    assert report.sqnr_db < 45  # the whole says what the rounding costs
    save(Peaked(1.05), tmp_path / "wrong.mlpackage", precision=ct.precision.FLOAT16)
    assert find_bad_op(tmp_path / "wrong.mlpackage", program, X).first is not None


def wrong_weights(net):
    net.qkv.weight.data[:16] *= 1.05


def swapped(net):
    net.out.weight.data = net.out.weight.data.T.contiguous()


@pytest.mark.parametrize(("change", "module"), [(wrong_weights, "qkv (Linear)"), (swapped, "out (Linear)")])
def test_a_wrong_weight_is_located_and_audited(change, module, tmp_path):
    path = tmp_path / "net.mlpackage"
    net = Net().eval()
    right = torch.export.export(net, (torch.zeros(1, 3, 8, 8),)).run_decompositions({})
    changed = Net().eval()
    change(changed)
    save(changed, path)
    report = find_bad_op(path, right, X)
    assert report.first is not None
    assert report.first.module == module
    assert report.first.operation == "linear"
    audit = audit_weights(path, right)
    assert {item.parameter for item in audit.compared if item.rel_l2 > 1e-3} == {module.split()[0] + ".weight"}


def test_a_dropped_operation_is_located(tmp_path):
    def drop(block):
        silu = next(item for item in block.operations if item.type == "silu")
        source = silu.inputs["x"].arguments[0].name
        for item in block.operations:
            for argument in item.inputs.values():
                for binding in argument.arguments:
                    if binding.name == silu.outputs[0].name:
                        binding.name = source

    path = tmp_path / "net.mlpackage"
    program = save(Net().eval(), path, mutate=drop)
    report = find_bad_op(path, program, X)
    assert report.first is not None
    assert report.first.rel_l2 > 0.1


def gelu(block):
    constant(block, "gelu", "mode").immediateValue.tensor.strings.values[0] = "TANH_APPROXIMATION"


def epsilon(block):
    constant(block, "layer_norm", "epsilon").immediateValue.tensor.floats.values[0] = 2e-2


def group_epsilon(block):
    root = next(item for item in block.operations if item.type == "sqrt").inputs["x"].arguments[0].name
    add = next(item for item in block.operations if item.outputs[0].name == root)
    name = add.inputs["y"].arguments[0].name
    literal = next(item for item in block.operations if item.outputs[0].name == name).attributes["val"]
    literal.immediateValue.tensor.floats.values[0] = 1.5e-2


def strides(block):
    constant(block, "conv", "groups").immediateValue.tensor.ints.values[0] = 3


@pytest.mark.parametrize(
    ("mutate", "attribute"),
    [(gelu, "mode"), (epsilon, "epsilon"), (group_epsilon, "epsilon"), (strides, "groups")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_changed_attribute_is_audited(mutate, attribute, tmp_path):
    path = tmp_path / "net.mlpackage"
    program = save(Net().eval(), path, mutate=mutate)
    differences = audit_attributes(path, program)
    assert [item.attribute for item in differences] == [attribute]


class Scalars(torch.nn.Module):
    """Every operation with a number as its second operand, none of which can be folded into its neighbour."""

    def forward(self, x):
        y = torch.tanh(x + 0.3)
        y = torch.tanh(y * 1.7)
        y = torch.tanh(y / 2.3)
        y = torch.sigmoid(y - 0.4)
        y = torch.sigmoid(1.5 - y)
        return torch.tanh(y**1.3)


@pytest.mark.parametrize("number", [None, 0.3, 1.7, 1 / 2.3, 0.4, 1.5, 1.3])
def test_a_changed_number_is_audited(number, tmp_path):
    """An operand that is a tenth larger moves the output by less than int8 does."""
    changed = []

    def spoil(block):
        for item in block.operations:
            literal = item.attributes["val"].immediateValue.tensor.floats.values if "val" in item.attributes else []
            if len(literal) == 1 and number is not None and abs(literal[0] - number) < 1e-6:
                literal[0] *= 1.1
                changed.append(item.outputs[0].name)

    path = tmp_path / "net.mlpackage"
    program = save(Scalars().eval(), path, mutate=spoil)
    differences = audit_attributes(path, program)
    assert len(changed) == (number is not None)
    assert [item.reference for item in differences] == [number] * len(changed)
    assert all(item.package == pytest.approx(1.1 * item.reference) for item in differences)


def test_a_sound_package_passes_the_audits(whole):
    path, program = whole
    assert audit_attributes(path, program) == []
    report = audit_weights(path, program)
    assert report.worst == 0
    assert {"conv.weight", "qkv.weight", "out.weight", "norm.weight"} - {item.parameter for item in report.compared} <= {"norm.weight"}
    assert np.array_equal(package_weights(path, program)["p_qkv_weight"], Net().qkv.weight.detach().numpy())


def test_a_foreign_program_is_refused(whole):
    class Other(torch.nn.Module):
        def forward(self, x):
            return torch.sin(x)

    program = torch.export.export(Other(), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(MilError, match="the program it was converted from"):
        find_bad_op(whole[0], program, X)


class Loud(torch.nn.Module):
    """A square that leaves fp16's range inside an otherwise tame network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 1)
        self.last = torch.nn.Conv2d(8, 3, 1)

    def forward(self, x):
        y = torch.tanh(self.first(x)) * 1000.0
        power = y * y
        return self.last(torch.sigmoid(power / 1e6))


def test_overflow_is_counted_and_the_fewest_operations_kept(tmp_path):
    path = tmp_path / "loud.mlpackage"
    program = save(Loud().eval(), path, precision=ct.precision.FLOAT16)
    free = find_bad_op(path, program, X, forced=False)
    assert free.first is not None
    assert free.first.overflowed > 0
    assert free.first.magnitude == np.inf
    assert free.first.reference_magnitude > 65504
    kept = keep_fp32(path, program, X, gate_db=45)
    assert kept.reached
    assert kept.before_db < 45 <= kept.sqnr_db
    assert 1 <= len(kept.operations) <= 3
    assert all(not name.endswith("fp16") for name in kept.operations)
    assert keep_fp32(path, program, X, gate_db=-1000).operations == ()
    assert not keep_fp32(path, program, X, gate_db=1000).reached


def test_names_and_measures():
    assert base_name("linear_3_cast_fp16") == "linear_3"
    assert base_name("p_conv_weight_to_fp16_palettized") == "p_conv_weight"
    assert relative_l2(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_l2(torch.tensor([torch.inf]), torch.ones(1)) == np.inf
    assert sqnr_db(0.1) == pytest.approx(20)


def test_pairs_agree_in_shape_and_order(whole):
    path, program = whole
    pairs = pair_values(load(path).function, program)
    order = {node.name: position for position, node in enumerate(program.graph.nodes)}
    positions = [order[node.name] for node in pairs.values()]
    assert positions == sorted(positions)
