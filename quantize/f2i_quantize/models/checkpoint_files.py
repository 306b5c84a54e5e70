"""The files of a checkpoint, read without torch: where it lies, its JSON, the shapes in its weights, and one hash of all of it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.files import FolderKind, sha256_file
from f2i_runtime.text_files import read_text_file
from pydantic import ValidationError

from f2i_quantize.models import presets
from f2i_quantize.models.config import PARTS

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Trained models that ship with the package."""
WEIGHTS: dict[str, str | None] = {
    "UNet2DConditionModel": "diffusion_pytorch_model.safetensors",
    "AutoencoderKL": "diffusion_pytorch_model.safetensors",
    "AutoencoderTiny": "diffusion_pytorch_model.safetensors",
    "Dinov2Model": "model.safetensors",
    "Dinov2WithRegistersModel": "model.safetensors",
    "TokenProjector": "model.safetensors",
    "PixelCodec": None,
}
"""Class of a part → the file of its weights; none where it has no weights."""
INDEX, PIPELINE = "model_index.json", "F2IPipeline"
"""The file that names a checkpoint's parts, and the class that it names as a whole."""
VARIANTS = (".fp16", ".bf16")
"""What hubs put before the suffix of weights stored in half precision. They are read where there are no others; all are computed with in float32."""
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


def _checkpoint_files(folder: Path) -> Sequence[str] | None:
    """Patterns of the files that we write into a checkpoint; None for a folder that is none of ours."""
    try:
        if read_json(folder / INDEX).get("_class_name") != PIPELINE:
            return None
    except CheckpointError:
        return None
    parts = [f"{part}/{name}" for part in PARTS for name in ("config.json", "*.safetensors")]
    return [INDEX, *parts, "quantization/*.json", "quantization/*.safetensors"]


CHECKPOINT_FOLDER = FolderKind("a checkpoint", _checkpoint_files)
"""What ``f2i distill`` and ``f2i quantize`` write."""


def find_folder(source: str | Path) -> Path | None:
    """Returns the checkpoint's folder: the one given, or that of the bundled model of this name; None for the name of a preset.

    Raises CheckpointError where it is none of these, with the names there are.
    """
    if Path(source).exists():
        return Path(source)
    if (BUNDLED / str(source)).is_dir():
        return BUNDLED / str(source)
    if str(source) in presets.PRESETS:
        return None
    known = sorted({*presets.PRESETS, *(p.name for p in BUNDLED.glob("*") if p.is_dir())})
    raise CheckpointError(f"{source}: no such checkpoint folder, and not one of the models {', '.join(known)}")


def is_preset(source: str | Path) -> bool:
    """Whether the source is the name of a preset, whose random weights no file holds."""
    return not (Path(source).exists() or (BUNDLED / str(source)).is_dir())


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a checkpoint's JSON file. Raises CheckpointError where it is missing or not a JSON object."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a checkpoint is a Diffusers-format folder with model_index.json, {', '.join(PARTS)}")
    try:
        data = json.loads(read_text_file(path))
    except (UsageError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not readable as JSON: {first_line(e)}") from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, expected a JSON object")
    return data


def weights_files(folder: Path, name: str) -> tuple[Path, ...]:
    """Returns the files of a part's weights in its ``folder``: ``name``, else the shards that its index names, else the same of a half-precision variant.

    Raises CheckpointError where there are none, naming pickles and other variants that lie there instead, or where a shard is missing.
    """
    stem = name.removesuffix(".safetensors")
    for variant in ("", *VARIANTS):
        whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file():
            return (whole,)
        if index.is_file():
            return _shards(index)
    path = folder / name
    others = sorted(p.name for pattern in ("*.bin", "*.ckpt", "*.pt", "*.pth") for p in folder.glob(pattern))
    variants = sorted(p.name for p in folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{path}: missing; found {', '.join(others)}, but pickled weights are never read: convert them to safetensors"
        )
    if variants:
        raise CheckpointError(f"{path}: missing; found {', '.join(variants[:4])}: rename the one that is wanted to {name}")
    raise CheckpointError(f"{path}: missing")


def _shards(index: Path) -> tuple[Path, ...]:
    """Returns the files that an index names, after checking that each of its tensors is in the file that it says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: it has no weight_map of tensor names to files, as diffusers and transformers write it")
    held: dict[str, str] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not file.endswith(".safetensors") or "\\" in file:
            raise CheckpointError(f"{index}: it names {file!r}, expected the name of a safetensors file beside it")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index.parent / file}: missing; {index.name} names it: copy the checkpoint again")
        for key in tensor_shapes(index.parent / file):
            if key in held:
                raise CheckpointError(f"{index.parent / file}: key {key!r} is in {held[key]} as well; copy the checkpoint again")
            held[key] = file
    for key, file in places.items():
        if held.get(key) != file:
            raise CheckpointError(f"{index}: it says that key {key!r} is in {file}, which does not hold it; copy the checkpoint again")
    return tuple(index.parent / file for file in sorted(set(places.values())))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor in a safetensors file, from its header alone: eight bytes of length, then JSON.

    Raises CheckpointError where it is not such a file, or shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
            if length > LARGEST_HEADER:
                raise ValueError("its first eight bytes are not the length of a header")
            header = json.loads(file.read(length))
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        wanted = 8 + length + max((v["data_offsets"][1] for v in entries.values()), default=0)
        if path.stat().st_size < wanted:
            raise ValueError(f"it has {path.stat().st_size} bytes, expected {wanted}")
        return {k: tuple(int(n) for n in v["shape"]) for k, v in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file: {first_line(e)}") from e


def checkpoint_sha256(source: str | Path) -> str:
    """Returns the hash of what loading would read: every file's name and content, in order; for a random preset, of its table and seed."""
    folder = find_folder(source)
    digest = hashlib.sha256()
    if folder is None:
        digest.update(f"preset {source} seed 0 {presets.PRESETS[str(source)]!r}".encode())
        return digest.hexdigest()
    for path in [folder / "model_index.json", *(p for part in PARTS for p in sorted((folder / part).glob("*")))]:
        if path.suffix in {".json", ".safetensors"}:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(sha256_file(path)))
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Returns what an error says, in one line: for a record that pydantic refuses, the first key that is wrong."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'configuration'}: {first['msg']}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
