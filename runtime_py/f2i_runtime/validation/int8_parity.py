"""Whether every engine computes the same quantized function: each beside the QDQ program that all were lowered from, and beside each other.

End to end, the rounding noise of int8 hides a scale that is a fifth too large. So each engine's error to the float reference must be what the QDQ program's
is, and where an engine shows its layers, each layer is given what the QDQ program gave it and must return the same.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from f2i_runtime.bundle.manifest import STATIC
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.engines.quantized_layers import QuantizedLayer
from f2i_runtime.engines.session import ENGINES
from f2i_runtime.errors import MissingPackageError
from f2i_runtime.metrics.fidelity import ErrorSums, psnr_db, relative_l2
from f2i_runtime.pipeline import REFERENCE, Pipeline, open_pipeline

Array = np.ndarray[Any, Any]
Gate = tuple[str, float, float, bool]
"""Name, value, limit, and whether the value must be at least the limit."""

LOSSLESS_DB = 90.0
"""A component whose QDQ program is this close to the reference is float: there is no rounding to compare."""
LAYER_PACKAGES = {"onnx": ("onnx", "onnx"), "tflite": ("ai_edge_litert", "run-tflite")}
"""Targets whose artifacts can be taken apart into layers → the package that this needs, and the extra that installs it."""


@dataclass
class Simulated:
    """What the QDQ programs of one precision gave on the tiles and crops of a validation, and what engines gave so far."""

    precision: str
    sqnr_db: dict[str, float]
    layers: dict[str, list[QuantizedLayer]]
    photos: dict[str, dict[str, Array]] = field(default_factory=dict)
    """Target → photo's name → stitched result; ``torch`` is the QDQ programs' own."""


def simulate(
    bundle: Bundle,
    precision: str,
    expected: Sequence[Mapping[str, Array]],
    crops: Sequence[tuple[str, Array]],
    stitch: Callable[[Pipeline, Array], Array],
    threads: int,
) -> Simulated | None:
    """Run the QDQ programs of ``precision``; None where the bundle holds none.

    ``expected``: all tensors of the reference per tile; ``crops``: photos to stitch with ``stitch``. Raises BundleError, MissingPackageError, ToolchainError.
    """
    if not all(precision in component.simulated for component in bundle.manifest.components.values()):
        return None
    from f2i_runtime.engines.run_torch import TorchSession, quantized_layers

    with open_pipeline(bundle, REFERENCE[0], precision, threads=threads) as pipeline:
        sqnr, layers = {}, {}
        for call in bundle.manifest.dataflow:
            sums = ErrorSums()
            for tensors in expected:
                sums.update(tensors[call.result], pipeline.run(call.component, {a: tensors[t] for a, t in call.inputs.items()}))
            sqnr[call.component] = sums.sqnr_db()
            inputs = {a: expected[0][t] for a, t in call.inputs.items()}
            layers[call.component] = quantized_layers(cast(TorchSession, pipeline.sessions[call.component]), inputs)
        photos = {name: stitch(pipeline, crop) for name, crop in crops}
    return Simulated(precision, sqnr, layers, {REFERENCE[0]: photos})


def photos_beside(simulated: Simulated, target: str, photos: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """PSNR in dB of an engine's photos to those of the QDQ programs (``simulated``) and of every engine before it: photo's name → engine → figure.

    Keeps ``photos`` for the engines that come after.
    """
    figures = {
        name: {
            "simulated" if other == REFERENCE[0] else other: psnr_db(np.clip(results[name], 0, 1), np.clip(photo, 0, 1))
            for other, results in simulated.photos.items()
        }
        for name, photo in photos.items()
    }
    simulated.photos[target] = dict(photos)
    return figures


def judge(
    simulated: Simulated, pipeline: Pipeline, sqnr_db: Mapping[str, float | None], beside: Mapping[str, Mapping[str, float]]
) -> Iterator[Gate]:
    """The gates of one engine: its SQNR per component, its layers, and its photos as :func:`photos_beside` compared them."""
    gates, label = pipeline.bundle.manifest.gates, f"{pipeline.target}/{pipeline.precision}"
    for component, alone in simulated.sqnr_db.items():
        if alone > LOSSLESS_DB or (pipeline.target == "coreml" and simulated.precision not in STATIC):
            continue  # of int8 weights alone Core ML loses less than its fp16 ops do: `own_weights` holds it to more than this gate could
        value = sqnr_db[component]
        gap = float("nan") if value is None else abs(value - alone)
        yield f"{label} {component} sqnr_db from simulated", gap, gates.simulated_sqnr_gap_db[pipeline.target], False  # type: ignore[index]
    if pipeline.target in LAYER_PACKAGES:
        for component, layers in simulated.layers.items():
            artifact = pipeline.bundle.manifest.artifact(component, pipeline.target, pipeline.precision)
            errors = layer_errors(pipeline.target, pipeline.bundle.artifact_path(artifact), layers)
            missing = len(layers) - len(errors)
            yield f"{label} {component} layers not int8 in the artifact", missing, 0, False
            if errors:
                worst = max(errors, key=errors.__getitem__)
                yield f"{label} {component} layer rel_l2, worst {worst}", errors[worst], gates.layer_rel_l2, False
    if gates.engines_psnr_db is not None:
        for other in dict.fromkeys(other for figures in beside.values() for other in figures):
            yield f"{label} photo psnr_db to {other}", min(f[other] for f in beside.values()), gates.engines_psnr_db, True


def layer_errors(target: str, path: Path, layers: Sequence[QuantizedLayer]) -> dict[str, float]:
    """Relative L2 of every layer found in the artifact at ``path`` by its int8 weights, each given what the QDQ program gave it.

    Raises MissingPackageError, ToolchainError.
    """
    package, extra = LAYER_PACKAGES[target]
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, f"comparing the layers of {target} artifacts", extra)
    outputs: dict[str, Array] = importlib.import_module(ENGINES[target].module).layer_outputs(path, layers)
    return {layer.name: relative_l2(layer.output, outputs[layer.name]) for layer in layers if layer.name in outputs}
