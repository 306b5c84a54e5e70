"""An app's own inference: the manifest's dataflow on plain ONNX Runtime, nothing of f2i imported."""

import json
from pathlib import Path

import numpy as np
import onnxruntime


def upscale_tile(bundle: Path, lr: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """One tile, float32 (1, 3, T, T) in [0, 1] → (1, 3, 2T, 2T)."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    tensors = {"lr": lr, **{name: np.load(bundle / record["path"]) for name, record in manifest["constants"].items()}}
    for call in manifest["dataflow"]:
        [artifact] = [
            a for a in manifest["artifacts"] if (a["component"], a["target"], a["precision"]) == (call["component"], "onnx", precision)
        ]
        session = onnxruntime.InferenceSession(str(bundle / artifact["path"]), providers=["CPUExecutionProvider"])
        [tensors[call["result"]]] = session.run(None, {argument: tensors[tensor] for argument, tensor in call["inputs"].items()})
    return tensors["sr"]
