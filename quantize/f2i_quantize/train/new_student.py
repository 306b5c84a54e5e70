"""A checkpoint of any shape to start training from: ``python -m f2i_quantize.train.new_student SHAPE.json OUT``.

A shape names what a preset names, as JSON; a part's keys are those of its ``config.json``, as strict, and what is left out is the library's default:

    {
      "model": {"name": "candidate", "base": "bicubic", "unet_norm": "none"},
      "unet": {"block_out_channels": [64, 64, 96, 128], "layers_per_block": 1, "act_fn": "relu", "cross_attention_dim": 192, "attention_head_dim": 4,
               "down_block_types": ["DownBlock2D", …], "mid_block_type": "UNetMidBlock2DCrossAttn", "up_block_types": ["UpBlock2D", …]},
      "feature_encoder": {"hidden_size": 144, "num_hidden_layers": 4, "num_attention_heads": 3, "mlp_ratio": 3, "image_size": 224},
      "codec": {"factor": 1}
    }

``f2i distill --student OUT`` trains it. ``--encoder CHECKPOINT`` takes the feature encoder's weights from another model, pruned where it is smaller.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from f2i_runtime.errors import F2IError, UsageError
from pydantic import BaseModel, ConfigDict, ValidationError

from f2i_quantize.models import checkpoint, presets
from f2i_quantize.models.checkpoint_files import first_line, read_json
from f2i_quantize.models.config import ENCODER, UNET, ModelConfig, PixelCodecConfig
from f2i_quantize.models.part_keys import check_keys
from f2i_quantize.models.presets import Preset
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.prune import prune_part
from f2i_quantize.train.starting_weights import set_starting_weights

_UNET = {"mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 8}
"""What a shape's UNet has where it does not say; the groups are those of ``group`` norms, and without effect otherwise."""
_ENCODER = {"patch_size": 14, "image_size": 224}


class Shape(BaseModel):
    """A model without its weights. Raises ``pydantic.ValidationError`` on an unknown key; parts are checked by :func:`read_shape`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig(base="bicubic")
    unet: dict[str, Any]
    feature_encoder: dict[str, Any]
    codec: PixelCodecConfig = PixelCodecConfig(factor=1)

    def preset(self) -> Preset:
        """Returns the shape as the table of presets has it."""
        return Preset(self.model, {**_UNET, **self.unet}, {**_ENCODER, **self.feature_encoder}, self.codec)


def read_shape(path: Path) -> Shape:
    """Returns the shape in a JSON file. Raises CheckpointError or UsageError naming the file and the first wrong key."""
    return shape_of(read_shape_file(path), str(path))


def read_shape_file(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file of shapes. Raises UsageError where there is no such file, CheckpointError where it holds no JSON object."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a shape is a JSON object with {', '.join(Shape.model_fields)}")
    return read_json(path)


def shape_of(content: Any, source: str) -> Shape:
    """Returns the shape that JSON content describes. Raises CheckpointError or UsageError naming its ``source`` and the first wrong key."""
    try:
        shape = Shape.model_validate(content)
    except ValidationError as e:
        raise UsageError(f"{source}: {first_line(e)}; a shape has {', '.join(Shape.model_fields)}") from e
    for part, needed in (
        (UNET, ("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim")),
        (ENCODER, ("hidden_size",)),
    ):
        given = getattr(shape, part)
        if missing := [key for key in needed if key not in given]:
            raise UsageError(f"{source}: {part} does not say {', '.join(missing)}")
    classes, settings = presets.part_settings(shape.preset())
    for part, kind in classes.items():
        check_keys(Path(source), kind, settings[part])
    return shape


def new_student(shape: Shape, seed: int = 0, encoder: F2IModel | None = None) -> F2IModel:
    """Returns a model of the shape with the weights that training starts from, drawn from ``seed``; the feature encoder's are ``encoder``'s where given."""
    model = presets.build_preset(shape.preset(), seed)
    set_starting_weights(model)
    if encoder:
        prune_part(model.feature_encoder, encoder.feature_encoder)
    return model


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m f2i_quantize.train.new_student", description="A checkpoint of any shape to start training from."
    )
    parser.add_argument("shape", type=Path, help="the shape, a JSON file")
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the weights")
    parser.add_argument("--encoder", metavar="CHECKPOINT", help="a model whose feature encoder's weights are taken")
    given = parser.parse_args(arguments)
    try:
        shape = read_shape(given.shape)
        encoder = checkpoint.load(given.encoder, only=(ENCODER,)) if given.encoder else None
        try:
            model = new_student(shape, given.seed, encoder)
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as e:
            raise UsageError(f"{given.shape}: no model can be built from it: {first_line(e)}") from e
        checkpoint.save(model, given.out)
    except F2IError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    sys.stdout.write(f"{given.out}: {model.parameters() / 1e6:.2f} M parameters\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
