"""What a checkpoint is, from its configuration files and the headers of its weights: no torch, and no weight is read.

An export is planned from this: the components, how large each is, and which tiles the model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from f2i_runtime.errors import CheckpointError
from pydantic import ValidationError

from f2i_quantize.models import checkpoint_files, presets
from f2i_quantize.models.config import CODEC, ENCODER, PARTS, PROJECTOR, UNET, ModelConfig, PixelCodecConfig, ProjectorConfig
from f2i_quantize.models.geometry import Geometry
from f2i_quantize.models.part_keys import check_keys

CLASSES: dict[str, tuple[str, ...]] = {
    UNET: ("UNet2DConditionModel",),
    ENCODER: ("Dinov2Model", "Dinov2WithRegistersModel"),
    PROJECTOR: ("TokenProjector",),
    CODEC: ("PixelCodec", "AutoencoderKL", "AutoencoderTiny"),
}
"""The classes that each part may be of."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "AutoencoderKL": {"block_out_channels": (64,), "latent_channels": 4},
    "AutoencoderTiny": {"num_encoder_blocks": (1, 3, 3, 3), "latent_channels": 4},
    "Dinov2Model": {"hidden_size": 768, "patch_size": 14},
    "Dinov2WithRegistersModel": {"hidden_size": 768, "patch_size": 16},
}
"""What the libraries take for keys that a ``config.json`` leaves out, of those that are needed here."""
SCHEDULER = "scheduler"
ONE_SIDED = {"codec_encoder": ("decoder.", "post_quant_conv."), "codec_decoder": ("encoder.", "quant_conv.")}
"""Component → beginnings of the codec's tensors that its graph does not hold."""


@dataclass(frozen=True)
class Description:
    """A checkpoint as a plan needs it. ``parameters``: by component."""

    source: str
    geometry: Geometry
    parameters: dict[str, int]

    @property
    def config(self) -> ModelConfig:
        """The scalars of ``model_index.json``."""
        return self.geometry.config


def describe(source: str | Path) -> Description:
    """Returns the description of a checkpoint folder, the bundled model of that name, or a preset.

    Raises CheckpointError with one line that names the file. What only building the model can find (a block type that the library does not know, a tensor
    of a wrong shape, a weight that is not finite) is found by the process that loads it.
    """
    folder = checkpoint_files.find_folder(source)
    if folder is None:
        preset = presets.PRESETS[str(source)]
        classes, settings = presets.part_settings(preset)
        config = preset.config.model_copy(update={"trained": False})
        return Description(str(source), _geometry(config, classes, settings), presets.PARAMETERS[str(source)])
    index = checkpoint_files.read_json(folder / "model_index.json")
    config = read_config(folder, index)
    classes = {part: read_class(folder, part, index) for part in PARTS}
    settings = {part: read_settings(folder / part / "config.json", kind) for part, kind in classes.items()}
    geometry = _geometry(config, classes, settings)
    try:
        geometry.check_fit(folder)
        geometry.tile_multiple()
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{folder}: a config.json holds a value of the wrong type: {checkpoint_files.first_line(e)}") from e
    return Description(str(source), geometry, _parameters(folder, geometry))


def read_config(folder: Path, index: Mapping[str, Any]) -> ModelConfig:
    """Returns the model's own scalars out of its ``model_index.json``. Raises CheckpointError naming the first wrong key.

    Parts that are ``[null, null]`` are absent, as in Diffusers. A scheduler is how others draw the steps; here ``steps`` says what they compute.
    """
    scalars = {k: v for k, v in index.items() if k not in (*PARTS, SCHEDULER) and not k.startswith("_") and v != [None, None]}
    if index.get(SCHEDULER, [None, None]) != [None, None] and "steps" not in index:
        raise CheckpointError(
            f"{folder / 'model_index.json'}: it names a scheduler but no steps; add 'steps', a list with the timestep, keep and add of each step "
            "that the scheduler makes"
        )
    try:
        return ModelConfig(**scalars)
    except ValidationError as e:
        raise CheckpointError(f"{folder / 'model_index.json'}: {checkpoint_files.first_line(e)}") from e


def read_class(folder: Path, part: str, index: Mapping[str, Any]) -> str:
    """Returns the class of a part out of its ``model_index.json``. Raises CheckpointError for one that is not known."""
    entry = index.get(part)
    if not (isinstance(entry, list) and len(entry) == 2):
        raise CheckpointError(
            f"{folder / 'model_index.json'}: key {part!r} is {entry!r}, expected [library, class], as Diffusers writes it"
        )
    if entry[1] not in CLASSES[part]:
        raise CheckpointError(f"{folder / 'model_index.json'}: {part} is of class {entry[1]!r}, expected one of {', '.join(CLASSES[part])}")
    return str(entry[1])


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Returns the configuration of a part of class ``kind``. Raises CheckpointError, which names the key, for one that would not be computed with."""
    config = checkpoint_files.read_json(path)
    check_keys(path, kind, config)
    own = {"TokenProjector": ProjectorConfig, "PixelCodec": PixelCodecConfig}.get(kind)
    try:
        return own(**config).model_dump() if own else config
    except (TypeError, ValidationError) as e:
        raise CheckpointError(f"{path}: {kind} cannot be built from it: {checkpoint_files.first_line(e)}") from e


def _geometry(config: ModelConfig, classes: dict[str, str], settings: dict[str, dict[str, Any]]) -> Geometry:
    parts = {part: SimpleNamespace(**{**DEFAULTS.get(classes[part], {}), **settings[part]}) for part in PARTS}
    return Geometry(config, classes, parts)


def _parameters(folder: Path, geometry: Geometry) -> dict[str, int]:
    sizes: dict[str, dict[str, int]] = {}
    for part, kind in geometry.classes.items():
        file = checkpoint_files.WEIGHTS[kind]
        files = checkpoint_files.weights_files(folder / part, file) if file else ()
        sizes[part] = {name: math.prod(shape) for path in files for name, shape in checkpoint_files.tensor_shapes(path).items()}
    whole = {part: sum(tensors.values()) for part, tensors in sizes.items()}
    found = {"feature_encoder": whole[ENCODER] + whole[PROJECTOR], "unet": whole[UNET]}
    for component, others in ONE_SIDED.items():
        found[component] = sum(n for name, n in sizes[CODEC].items() if not name.startswith(others))
    return {name: found[name] for name in geometry.components()}
