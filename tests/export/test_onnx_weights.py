"""Where an ONNX program's weights are written: in the file, or beside it when a protobuf cannot hold them."""

import numpy as np
import onnxruntime
import pytest
import torch
from f2i_export.to_onnx import write_model


@pytest.mark.parametrize(("above", "files"), [(10_000, {"m.onnx"}), (1_000, {"m.onnx", "m.onnx.data"})])
def test_weights_above_the_limit_lie_in_a_file_of_their_own(tmp_path, above, files):
    torch.manual_seed(0)
    layer, example = torch.nn.Linear(32, 32).eval(), torch.rand(1, 32)
    program = torch.onnx.export(torch.export.export(layer, (example,)), input_names=["x"], output_names=["y"], dynamo=True, verbose=False)
    assert write_model(program, tmp_path / "m.onnx", external_above=above) >= 1
    assert {path.name for path in tmp_path.iterdir()} == files
    assert ((tmp_path / "m.onnx").stat().st_size < 4 * 32 * 32) == (len(files) == 2)
    [got] = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": example.numpy()})
    np.testing.assert_allclose(got, layer(example).detach().numpy(), atol=1e-6)
