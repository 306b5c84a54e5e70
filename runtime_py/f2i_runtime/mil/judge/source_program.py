"""The torch program a package was converted from, kept beside it for diagnosis: graph and changed weights, none that the reference holds.

A bundle's reference is the model as it was given; what the converter got has been rewritten for phones, and only its nodes bear the names
that the package's values have. Most of its weights are still the reference's own tensors, so they are named instead of stored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from f2i_runtime.bundle.manifest import SOURCE_SUFFIX
from f2i_runtime.errors import BundleError

_SHARED = "shared.json"


def source_path(package: Path) -> Path:
    """Returns the path of the source program of ``package``."""
    return package.with_name(package.name + SOURCE_SUFFIX)


def save_source(program: Any, package: Path, reference: Mapping[str, torch.Tensor]) -> Path:
    """Writes ``program`` (an ExportedProgram) beside ``package``; weights that are tensors of ``reference`` (name → tensor) become names."""
    by_place = {(tensor.data_ptr(), tensor.shape, tensor.stride()): name for name, tensor in reference.items() if tensor.numel()}
    weights = program.state_dict
    shared = {
        name: by_place[place]
        for name, tensor in weights.items()
        if (place := (tensor.data_ptr(), tensor.shape, tensor.stride())) in by_place
    }
    kept = {name: weights[name] for name in shared}
    path = source_path(package)
    try:
        for name in shared:
            weights[name] = torch.nn.Parameter(torch.zeros(0)) if isinstance(weights[name], torch.nn.Parameter) else torch.zeros(0)
        torch.export.save(program, path, extra_files={_SHARED: json.dumps(shared)})
    finally:
        weights.update(kept)
    return path


def load_source(package: Path, reference: Path) -> Any:
    """The program ``package`` was converted from, its weights completed from the ``reference`` (.pt2).

    Raises :class:`BundleError` when there is none, or when the reference does not hold what it names.
    """
    path = source_path(package)
    if not path.is_file():
        raise BundleError(f"{path}: it is missing, and nothing else says what {package.name} was converted from; export the bundle again")
    import torch.ao.quantization.fx._decomposed  # registers the operators of quantized programs

    extra = {_SHARED: ""}
    program = torch.export.load(path, extra_files=extra)
    weights = torch.export.load(reference).state_dict
    for name, other in json.loads(extra[_SHARED]).items():
        if other not in weights:
            raise BundleError(f"{path}: it names the weight {other!r}, which {reference} does not hold; export the bundle again")
        program.state_dict[name] = weights[other]
    return program
