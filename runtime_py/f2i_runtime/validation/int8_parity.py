"""Whether every engine computes the same quantized function: each beside the QDQ program that all were lowered from, and beside each other.

End to end, the rounding noise of int8 hides a scale that is a fifth too large. So each engine's error to the float reference must be what the QDQ program's
is, and where an engine shows its layers, each layer is given what the QDQ program gave it and must return the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from f2i_runtime.bundle.manifest import STATIC, Gates
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.engines.quantized_layers import QuantizedLayer
from f2i_runtime.metrics.fidelity import ErrorSums, psnr_db, relative_l2
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import CPU, REFERENCE, Variant, find_target, target_of
from f2i_runtime.validation.reference_run import ReferenceRun, stitch
from f2i_runtime.validation.results import ComponentRow, Gate, LayerRow, Rows, Subject, finite, gate

Array = np.ndarray[Any, Any]
Crops = Mapping[str, Array]
"""Photo's name → stitched result, float32 (h, w, 3)."""

LOSSLESS_DB = 90.0
"""A component whose QDQ program is this close to the reference is float: there is no rounding to compare."""
SIMULATED = "simulated"
"""How reports call the QDQ programs where they are compared with engines."""


@dataclass(frozen=True)
class Simulated:
    """What the QDQ programs of one precision gave on the tiles and crops of a validation."""

    precision: str
    sqnr_db: dict[str, float]
    layers: dict[str, list[QuantizedLayer]]
    crops: dict[str, Array]


def simulate(bundle: Bundle, precision: str, truth: ReferenceRun, threads: int) -> Simulated | None:
    """Run the QDQ programs of ``precision`` on what the reference was given; None where the bundle has none.

    Raises BundleError, MissingPackageError, ToolchainError.
    """
    if not all(precision in component.simulated for component in bundle.manifest.components.values()):
        return None
    from f2i_runtime.engines.run_torch import TorchSession, quantized_layers

    with open_pipeline(bundle, Variant(REFERENCE.target, precision), threads=threads) as pipeline:
        sqnr, layers = {}, {}
        for call in bundle.manifest.dataflow:
            sums = ErrorSums()
            for tensors in truth.tiles:
                sums.update(tensors[call.result], pipeline.run(call.component, {a: tensors[t] for a, t in call.inputs.items()}))
            sqnr[call.component] = sums.sqnr_db()
            inputs = {a: truth.tiles[0][t] for a, t in call.inputs.items()}
            layers[call.component] = quantized_layers(cast(TorchSession, pipeline.sessions[call.component]), inputs)
        crops = {crop.name: stitch(pipeline, crop.lr)[0] for crop in truth.crops}
    return Simulated(precision, sqnr, layers, crops)


def component_gaps(simulated: Simulated, variant: Variant, rows: Iterable[ComponentRow], limits: Gates) -> tuple[Gate, ...]:
    """Returns a gate per quantized component: how far its SQNR is from that of the QDQ program its artifact was lowered from."""
    gates = []
    for row in rows:
        alone = simulated.sqnr_db[row.component]
        if alone > LOSSLESS_DB or (target_of(variant).half_inside and simulated.precision not in STATIC):
            continue  # int8 weights alone lose less than fp16 ops do: `own_weights_rel_l2` asks more of such a target than this gate could
        own = row.sqnr_db
        if own is not None and target_of(variant).simulated:
            # Float ops between integers are computed in float16 there: better than float16 has to be, no integers are asked to be.
            enough = limits.component_sqnr_db.get("fp16", math.inf)
            own, alone = min(own, enough), min(alone, enough)
        gap = math.nan if own is None else abs(own - alone)
        limit = limits.sqnr_gap_db(variant)
        gates.append(gate(Subject(variant, component=row.component), "simulated_sqnr_gap_db", gap, limit))
    return tuple(gates)


def layer_parity(simulated: Simulated, variant: Variant, bundle: Bundle) -> Rows:
    """Returns a row per int8 layer, and per component two gates: all layers are int8 in the artifact, and the worst gives what its QDQ program's gives.

    Nothing where the target's artifacts cannot be taken apart. Raises MissingPackageError, ToolchainError.
    """
    if target_of(variant).layers is None:
        return Rows()
    rows: list[LayerRow] = []
    gates: list[Gate] = []
    for component, layers in simulated.layers.items():
        artifact = bundle.manifest.artifact(component, variant)
        errors = layer_errors(variant.target, bundle.artifact_path(artifact), layers, variant.accelerator)
        rows += [
            LayerRow(**variant._asdict(), component=component, layer=n.name, op=n.op, rel_l2=finite(errors.get(n.name))) for n in layers
        ]
        subject, missing = Subject(variant, component=component), [layer.name for layer in layers if layer.name not in errors]
        gates.append(gate(subject, "layers_not_int8", len(missing), 0, missing[0] if missing else ""))
        if errors:
            worst = max(errors, key=errors.__getitem__)
            gates.append(gate(subject, "layer_rel_l2", errors[worst], bundle.manifest.gates.layer_rel_l2, worst))
    return Rows(layers=tuple(rows), gates=tuple(gates))


def engine_agreement(
    variant: Variant, crops: Crops, simulated: Crops, others: Sequence[tuple[Variant, Crops]], limits: Gates
) -> tuple[dict[str, dict[str, float | None]], tuple[Gate, ...]]:
    """Compares an engine's crops with those of the QDQ programs and of the engines in ``others``, which have the same precision.

    Returns photo's name → engine → PSNR in dB of values in [0, 1] (None where there is no error), and a gate per engine on the worst photo.
    """
    beside = {SIMULATED: simulated} | {_engine(other): images for other, images in others}
    figures = {
        name: {other: psnr_db(np.clip(images[name], 0, 1), np.clip(crop, 0, 1)) for other, images in beside.items()}
        for name, crop in crops.items()
    }
    gates: list[Gate] = []
    if limits.engines_psnr_db is not None and crops:
        for other in beside:
            worst = min(figures, key=lambda name: figures[name][other])
            gates.append(gate(Subject(variant, other=other), "engines_psnr_db", figures[worst][other], limits.engines_psnr_db, worst))
    return {name: {other: finite(value) for other, value in row.items()} for name, row in figures.items()}, tuple(gates)


def _engine(variant: Variant) -> str:
    return variant.target if variant.accelerator == CPU else f"{variant.target}/{variant.accelerator}"


def layer_errors(target: str, path: Path, layers: Sequence[QuantizedLayer], accelerator: str = CPU) -> dict[str, float]:
    """Relative L2 of every layer found in the artifact at ``path`` by its int8 weights, each given what the QDQ program gave it.

    Raises MissingPackageError, ToolchainError.
    """
    adapter = find_target(target).on(accelerator).layers
    if adapter is None:
        return {}
    outputs: dict[str, Array] = adapter.load(f"comparing the layers of {target} artifacts").layer_outputs(path, layers)
    return {layer.name: relative_l2(layer.output, outputs[layer.name]) for layer in layers if layer.name in outputs}
