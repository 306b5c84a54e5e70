"""What can be estimated, each as a subject: a checkpoint folder, a bundled model, a preset with random weights, a graph in a file, a torch module."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from f2i_runtime.errors import MissingPackageError, UsageError
from f2i_runtime.files import sha256_file

if TYPE_CHECKING:
    from f2i_quantize.models.whole_model import ComponentGraph
    from torch import Tensor, nn

SOURCES = (
    ("f2i_bench", "npu/subjects.py"),
    ("f2i_export", "hexagon/*.py"),
    ("f2i_export", "to_*.py"),
    ("f2i_quantize", "models/*.py"),
    ("f2i_quantize", "rewrites/*.py"),
)
"""The code that shapes a graph: packages, and patterns in them."""
TRACERS = ("torch", "diffusers", "transformers", "onnxscript")
EVALUATIONS = "runs/{}/evaluation.json"
"""Where the package keeps what was measured of a bundled model."""
WHOLE = "native size"
"""The row of an evaluation that holds a model's figures, where it does not have the model's name."""
PHOTO = "astronaut.png"


@dataclass(frozen=True)
class Part:
    """One graph of a subject: how often it runs for a tile, and its parameters."""

    calls: int
    parameters: int | None


@dataclass(frozen=True)
class Subject:
    """Something to estimate. ``content`` is a hash of all that shapes its graphs, from which finished estimates are found again."""

    name: str
    tile: int
    content: str
    parts: Mapping[str, Part]
    write: Callable[[str, Path], tuple[Path, Path | None]]
    """(part, folder) → the graph's file, and a file with its inputs on one tile, or None for random ones."""
    quality: float | None = None


def subject(model: str, tile: int) -> Subject:
    """Returns the subject of a checkpoint folder, of a bundled model's or a preset's name, or of a graph's file, which has a tile of its own.

    Raises UsageError or CheckpointError for what is none of them, and for a tile that the model cannot have.
    """
    from f2i_export.hexagon.to_graphs import SUFFIX

    return _graph_file(Path(model)) if Path(model).suffix == SUFFIX else _checkpoint(model, tile)


def module_subject(name: str, module: nn.Module, tile: int) -> Subject:
    """Returns the subject of a torch module that takes an RGB tile (1, 3, tile, tile) and has one output."""
    from f2i_export.hexagon.to_graphs import SUFFIX
    from f2i_export.hexagon.to_hexagon import write_module

    def write(part: str, folder: Path) -> tuple[Path, Path | None]:
        path = folder / f"{part}{SUFFIX}"
        write_module(module, {"lr": (1, 3, tile, tile)}, path)
        return path, None

    digest = hashlib.sha256(repr(module).encode())
    for key, tensor in module.state_dict().items():
        digest.update(key.encode() + tensor.detach().numpy().tobytes())
    parameters = sum(p.numel() for p in module.parameters())
    return Subject(name, tile, _hash(digest.hexdigest(), tile), {"network": Part(1, parameters)}, write)


def _need_packages() -> None:
    for package in TRACERS:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, "estimating a model", "hexagon")


def _checkpoint(source: str, tile: int) -> Subject:
    _need_packages()
    from f2i_quantize.models import checkpoint, checkpoint_files
    from f2i_quantize.models.whole_model import build_components

    described = checkpoint.load(source, only=())
    graph = build_components(described, tile)
    names = [call.component for call in graph.calls]
    parts = {
        name: Part(max(1, names.count(name)), sum(p.numel() for p in component.module.parameters()))
        for name, component in graph.components.items()
    }

    @functools.cache
    def loaded() -> tuple[ComponentGraph, dict[str, Tensor]]:
        model = checkpoint.load(source)
        whole = build_components(model, tile)
        return whole, _one_tile(whole, tile, model.config.noise)

    def write(part: str, folder: Path) -> tuple[Path, Path | None]:
        from f2i_export.hexagon.to_graphs import SUFFIX
        from f2i_export.hexagon.to_hexagon import write_component, write_sample

        whole, tensors = loaded()
        component, call = whole.components[part], next(c for c in whole.calls if c.component == part)
        example = [tensors[call.arguments[name]] for name in component.inputs]
        path = folder / f"{part}{SUFFIX}"
        write_component(component, example, path)
        return path, write_sample(list(component.inputs), example, folder / f"{part}.npz")

    return Subject(source, tile, _hash(checkpoint_files.checkpoint_sha256(source), tile), parts, write, bundled_quality(source))


def _one_tile(graph: ComponentGraph, tile: int, noise: bool) -> dict[str, Tensor]:
    """Every tensor of the dataflow on one tile of a real photo: what rewrites are proved on and scales are found on."""
    import torch
    from f2i_runtime.photo.samples import cut_tiles, load_rgb, sample_photo

    [lr] = cut_tiles(load_rgb(sample_photo(PHOTO)), tile, 1, seed=0)
    shape = next((c.inputs["latent"] for c in graph.components.values() if "lr_latent" in c.inputs), None)
    extra = {"noise": torch.randn(shape, generator=torch.Generator().manual_seed(0))} if noise and shape else {}
    return graph.run(torch.from_numpy(lr), extra)


def bundled_quality(name: str) -> float | None:
    """Returns the PSNR-Y on Set5 (×2, dB) of a bundled model, as its evaluation in this package has it; None for another."""
    import f2i_quantize

    path = Path(f2i_quantize.__file__).parent / EVALUATIONS.format(name)
    if "/" in name or not path.is_file():
        return None
    sets: Any = json.loads(path.read_text())["Set5"]
    found = next((sets[key] for key in (name, WHOLE) if key in sets), None)
    return None if found is None else float(found["psnr_y"])


def _graph_file(path: Path) -> Subject:
    from f2i_export.hexagon.to_graphs import external_files, graph_inputs

    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    shapes = graph_inputs(path)
    image = next((shape for shape in shapes.values() if len(shape) == 4 and shape[1] == 3), None)
    if image is None or image[2] != image[3]:
        raise UsageError(f"{path}: its inputs are {shapes}; expected a square RGB tile (1, 3, side, side) among them")
    content = _hash("".join(sha256_file(file) for file in (path, *external_files(path))), image[2])
    return Subject(str(path), image[2], content, {"graph": Part(1, None)}, lambda _part, _folder: (path, None))


def _hash(content: str, tile: int) -> str:
    """Hash of a model's own content, the tile, our source, and the versions of what traces it."""
    digest = hashlib.sha256(json.dumps([content, tile, [_version(name) for name in TRACERS]]).encode())
    for package, pattern in SOURCES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(folder).glob(pattern)):
                digest.update(f"{package}/{file.relative_to(folder).as_posix()}".encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a graph in a file needs no torch
        return "absent"
