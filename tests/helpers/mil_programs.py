"""Small ML Programs and packages for the evaluator's tests, and ways to spoil them."""

import hashlib
import json

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # the name coremltools' own code uses
from coremltools.converters.mil.mil import Function
from coremltools.proto import Model_pb2
from f2i_runtime.mil.ops.optable import implementation

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def edit(package, change):
    """Rewrites a package's model file after ``change(operations)``."""
    file = package / MODEL
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    (function,) = model.mlProgram.functions.values()
    change(function.block_specializations[function.opset].operations)
    file.write_bytes(model.SerializeToString())


def rehash(root):
    """What a tamperer who knows the format does: a bundle's manifest vouches for the changed files."""
    manifest = json.loads((root / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        for record in artifact["files"]:
            data = (root / record["path"]).read_bytes()
            record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))


def attribute(operations, operation, key):
    """The tensor of an operation's attribute, wherever the file keeps it."""
    argument = operation.inputs[key].arguments[0]
    if argument.WhichOneof("binding") == "value":
        return argument.value.immediateValue.tensor
    return next(item for item in operations if item.outputs[0].name == argument.name).attributes["val"].immediateValue.tensor


def inferred(operation, opset=None, **arguments):
    """What coremltools' value inference computes for an operation on constants."""
    with Function({}, opset_version=opset):
        outputs = getattr(mb, operation)(**arguments)
    return [value.val for value in outputs] if isinstance(outputs, (list, tuple)) else outputs.val


def evaluated(operation, opset=15, **arguments):
    """What the evaluator computes for the same."""

    def tensor(value):
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], np.ndarray):
            return [tensor(item) for item in value]
        return value if isinstance(value, (str, bool, int, float)) else torch.as_tensor(np.asarray(value))

    with torch.inference_mode():
        result = implementation(operation, opset, "test")(**{name: tensor(value) for name, value in arguments.items()})
    return [item.numpy() for item in result] if isinstance(result, (list, tuple)) else result.numpy()


class Net(torch.nn.Module):
    """Convolution, both norms, attention, GELU and a resize: the operations of the components."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.group = torch.nn.GroupNorm(4, 16, eps=1e-2)
        self.norm = torch.nn.LayerNorm(16, eps=1e-2)
        self.qkv = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x):
        y = torch.nn.functional.silu(self.group(self.conv(x)))
        tokens = self.norm(y.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        y = torch.nn.functional.gelu(2 * self.out(tokens)).transpose(1, 2).reshape(y.shape)
        return torch.nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")


def convert(target=ct.target.iOS18, precision=ct.precision.FLOAT32):
    """The network and its Core ML model, not yet saved."""
    net = Net().eval()
    program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),)).run_decompositions({})
    model = ct.convert(program, minimum_deployment_target=target, compute_precision=precision, skip_model_load=True)
    return net, model


def sample(seed=0):
    """An input of the network."""
    return np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)


def only(outputs):
    """The one output of a call."""
    (value,) = outputs.values()
    return value


def relative(got, want):
    """Relative L2 error."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))
