"""A wrong weight, scale or op in what was compiled for the NPU: bytes are caught by ``verify``, and what was compiled from a wrong graph by ``validate``."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from f2i_bench.npu.subjects import subject
from f2i_export.hexagon.compile_child import CompileRequest, compile_context
from f2i_runtime.bundle.store import MANIFEST
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.validation.validate_options import ValidateOptions
from npu_graphs import needs_compiler
from onnx import numpy_helper

import f2i

COMPONENT = "feature_encoder"
pytestmark = [needs_compiler, pytest.mark.slow]


@pytest.fixture(scope="module")
def graph(cache, tmp_path_factory):
    """The encoder's graph as the compiler is given it."""
    path, _ = subject("tiny", 32).write(COMPONENT, tmp_path_factory.mktemp("graphs"))
    return path


def weight(model):
    """The largest weight loses its first output channel."""
    tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    values = numpy_helper.to_array(tensor).copy()
    values[0] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def scale(model):
    """A norm's scale is a fifth too large."""
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == norm.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.2), tensor.name))


def operation(model):
    """GELU becomes ReLU."""
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.op_type = "Relu"
    del node.attribute[:]


def unchanged(model):
    """The graph as it is: the way of the others into the bundle is not what fails."""


@pytest.mark.parametrize("mutate", [unchanged, weight, scale, operation], ids=lambda f: f.__name__)
def test_what_was_compiled_from_a_wrong_graph_fails_its_gate(mutate, graph, npu_bundle, tmp_path):
    model = onnx.load(graph)
    mutate(model)
    onnx.save(model, tmp_path / "graph.onnx")
    (tmp_path / "made").mkdir()
    made = compile_context(CompileRequest(COMPONENT, tmp_path / "graph.onnx", "fp16", find_chip("sm8750")), tmp_path / "made")
    copy = shutil.copytree(npu_bundle.root, tmp_path / "copy")
    artifact = npu_bundle.manifest.artifact(COMPONENT, npu_bundle.manifest.variants()[0])
    shutil.copy(made.files["binary"], copy / f"{artifact.path}.bin")
    rehash(copy, f"{artifact.path}.bin")
    f2i.verify(f2i.open_bundle(copy))
    report = f2i.validate(f2i.open_bundle(copy), ValidateOptions())
    failed = [gate for gate in report.failed() if gate.component == COMPONENT]
    assert bool(failed) == (mutate is not unchanged), [gate.id for gate in report.failed()]


def rehash(folder, path):
    """Makes the manifest vouch for a file as it is now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for artifact in manifest["artifacts"]:
        for record in artifact["files"]:
            if record["path"] == path:
                data = (folder / path).read_bytes()
                record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
