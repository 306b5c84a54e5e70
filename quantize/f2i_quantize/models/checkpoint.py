"""Checkpoints: a Diffusers-format folder with safetensors weights, read strictly and written atomically.

    CHECKPOINT/
      model_index.json                      class of each part, and the scalars of ModelConfig
      unet/config.json                      + diffusion_pytorch_model.safetensors
      feature_encoder/config.json           + model.safetensors
      projector/config.json                 + model.safetensors
      codec/config.json                     + diffusion_pytorch_model.safetensors (none for PixelCodec)

No pickle is ever read. Weights may be stored in fp16, bf16 or fp32; they are computed with in fp32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from f2i_runtime.errors import CheckpointError
from f2i_runtime.files import FolderKind, atomic_directory
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from f2i_quantize.models import presets
from f2i_quantize.models.checkpoint_files import INDEX, PIPELINE, WEIGHTS, find_folder, first_line, read_json, weights_files
from f2i_quantize.models.config import PARTS, UNET, PixelCodecConfig, ProjectorConfig, UNetNorm
from f2i_quantize.models.description import read_class, read_config, read_settings
from f2i_quantize.models.norms import set_norms
from f2i_quantize.models.parts import PixelCodec, TokenProjector
from f2i_quantize.models.whole_model import F2IModel


@dataclass(frozen=True)
class PartClass:
    """How one class of part is built from its ``config.json`` and where its weights lie."""

    library: str
    build: Callable[[dict[str, Any]], nn.Module]
    config_of: Callable[[Any], dict[str, Any]]
    weights: str | None
    published: tuple[tuple[str, str], ...] = ()
    """Pairs of parts of keys (in files, in this version's module) that the library renamed. Both are read, the first is written."""

    def module_key(self, key: str) -> str:
        """The module's name for a file's key."""
        for old, new in self.published:
            key = key.replace(old, new)
        return key

    def file_key(self, key: str) -> str:
        """The file's name for a module's key."""
        for old, new in self.published:
            key = key.replace(new, old)
        return key


def _diffusers(cls: Any) -> PartClass:
    return PartClass("diffusers", lambda c: cls.from_config(c), lambda m: dict(json.loads(m.to_json_string())), WEIGHTS[cls.__name__])


def _transformers(cls: Any, config: Any) -> PartClass:
    return PartClass("transformers", lambda c: cls(config.from_dict(c)), lambda m: m.config.to_dict(), WEIGHTS[cls.__name__], DINO_KEYS)


DINO_KEYS = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)
"""Pairs of parts of keys: as Meta's DINOv2 checkpoints name them, and as transformers 5 has them in memory."""

PART_CLASSES: dict[str, dict[str, PartClass]] = {
    "unet": {"UNet2DConditionModel": _diffusers(UNet2DConditionModel)},
    "feature_encoder": {
        "Dinov2Model": _transformers(Dinov2Model, Dinov2Config),
        "Dinov2WithRegistersModel": _transformers(Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
    },
    "projector": {
        "TokenProjector": PartClass(
            "f2i", lambda c: TokenProjector(ProjectorConfig(**c)), lambda m: m.config.model_dump(), WEIGHTS["TokenProjector"]
        )
    },
    "codec": {
        "PixelCodec": PartClass("f2i", lambda c: PixelCodec(PixelCodecConfig(**c)), lambda m: m.config.model_dump(), None),
        "AutoencoderKL": _diffusers(AutoencoderKL),
        "AutoencoderTiny": _diffusers(AutoencoderTiny),
    },
}


def save(model: F2IModel, folder: Path, *, dtype: torch.dtype = torch.float32, replace: FolderKind | None = None) -> None:
    """Writes ``model`` as a checkpoint folder, atomically: the folder is complete or absent.

    Raises UsageError when it exists already, unless it is of the kind ``replace``.
    """
    index: dict[str, Any] = {"_class_name": PIPELINE, **model.config.model_dump(mode="json")}
    with atomic_directory(folder, replace=replace) as staging:
        for name, part in model.parts().items():
            kind = PART_CLASSES[name][type(part).__name__]
            index[name] = [kind.library, type(part).__name__]
            (staging / name).mkdir()
            (staging / name / "config.json").write_text(json.dumps(kind.config_of(part), indent=2, default=str) + "\n")
            if kind.weights:
                tensors = {
                    kind.file_key(k): v.detach().to(dtype if v.is_floating_point() else v.dtype).contiguous()
                    for k, v in part.state_dict().items()
                }
                save_file(_separate(tensors), staging / name / kind.weights, metadata={"format": "pt"})
        (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share memory, copied: safetensors refuses them. The others are the model's own, so that nothing is held twice."""
    seen: set[int] = set()
    out = {}
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        alone = place not in seen and tensor.untyped_storage().nbytes() == tensor.nbytes
        out[key] = tensor if alone else tensor.clone()
        seen.add(place)
    return out


def load(source: str | Path, only: Collection[str] = PARTS) -> F2IModel:
    """Load a checkpoint folder, the bundled model of that name, or a preset with random weights (``tiny``, ``mobile``, ``paper``).

    Weights stored as float32 stay in the file, mapped into memory. ``only``: the parts whose weights are wanted; the others come without (on the meta
    device). Raises CheckpointError with one line that names the file, and for weights the key, the shape got and the shape expected.
    """
    folder = find_folder(source)
    if folder is None:
        return presets.build(str(source), weights=bool(only))
    index = read_json(folder / "model_index.json")
    config = read_config(folder, index)
    parts = {name: _load_part(folder, name, index, config.unet_norm, name in only) for name in PARTS}
    model = F2IModel(config, parts["unet"], parts["feature_encoder"], parts["projector"], parts["codec"])
    model.geometry().check_fit(folder)
    return model


def _load_part(folder: Path, name: str, index: Mapping[str, Any], norm: UNetNorm, weights: bool) -> Any:
    kind = PART_CLASSES[name][read_class(folder, name, index)]
    if name == UNET:
        kind = replace(kind, build=partial(_unet_with_norms, kind.build, norm))
    config_path = folder / name / "config.json"
    config = read_settings(config_path, index[name][1])
    try:
        with torch.device("meta" if kind.weights else "cpu"):
            part = kind.build(config)
    except (TypeError, ValueError, KeyError, AttributeError, ValidationError, RuntimeError) as e:
        raise CheckpointError(f"{config_path}: {index[name][1]} cannot be built from it: {first_line(e)}") from e
    if kind.weights and weights:
        part = _load_weights(part, kind, config, folder / name)
    return part.eval().requires_grad_(False)


def _unet_with_norms(build: Callable[[dict[str, Any]], nn.Module], norm: UNetNorm, config: dict[str, Any]) -> nn.Module:
    return set_norms(build(config), norm)


def _load_weights(part: nn.Module, kind: PartClass, config: dict[str, Any], folder: Path) -> nn.Module:
    """Weights into a module built on the meta device; only tensors that no file holds (buffers computed by the constructor) are built again."""
    paths = weights_files(folder, str(kind.weights))
    path = paths[0] if len(paths) == 1 else folder
    expected = {k: tuple(v.shape) for k, v in part.state_dict().items()}
    tensors: dict[str, torch.Tensor] = {}
    try:
        with ExitStack() as stack:
            files = {name: file for p in paths for file in [stack.enter_context(safe_open(p, framework="pt"))] for name in file.keys()}  # noqa: SIM118 - a file is not a dictionary
            keys = dict(entry for k in files for entry in _entries(kind, k))
            for key in sorted(expected.keys() - keys.keys()):
                raise CheckpointError(f"{path}: key {key!r} is missing, expected shape {expected[key]}")
            for key in sorted(keys.keys() - expected.keys()):
                stored = keys[key][0]
                raise CheckpointError(
                    f"{path}: key {stored!r} of shape {tuple(files[stored].get_slice(stored).get_shape())} is not part of the model its config.json describes"
                )
            for key, (stored, half) in sorted(keys.items()):
                got = tuple(files[stored].get_slice(stored).get_shape())
                if half is not None:
                    got = (got[0] // 2, *got[1:])
                if got != expected[key]:
                    raise CheckpointError(f"{path}: key {key!r} has shape {got}, expected {expected[key]}")
                tensor = files[stored].get_tensor(stored)
                tensor = tensor if half is None else tensor.chunk(2)[half].contiguous()
                tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file: {first_line(e)}") from e
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: key {key!r} holds NaN or infinite weights")
    part.load_state_dict(tensors, assign=True)
    if any(b.is_meta for b in part.buffers()):
        fresh = kind.build(config)
        fresh.load_state_dict(tensors)
        return fresh
    return part


def _entries(kind: PartClass, stored: str) -> list[tuple[str, tuple[str, int | None]]]:
    """(module's key, (file's key, which half of its tensor)). DINOv2's SwiGLU is published with gate and value in one projection."""
    key = kind.module_key(stored)
    if kind.published and ".mlp.weights_in." in key:
        return [(key.replace("weights_in", name), (stored, half)) for half, name in enumerate(("gate_proj", "up_proj"))]
    return [(key.replace(".mlp.weights_out.", ".mlp.down_proj.") if kind.published else key, (stored, None))]


def copy_checkpoint(source: Path, destination: Path, *, replace: FolderKind | None = None) -> None:
    """Copies a checkpoint folder atomically. Raises UsageError as :func:`save`."""
    with atomic_directory(destination, replace=replace) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)
