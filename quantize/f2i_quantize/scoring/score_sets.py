"""How good a checkpoint is on benchmark sets, what its conditioning adds, and pictures to look at.

    python -m f2i_quantize.scoring.score_sets nano --set Set5 --set Set14 --json scores.json
    python -m f2i_quantize.scoring.score_sets nano --set Set5 --ablation
    python -m f2i_quantize.scoring.score_sets nano --pictures look

A set is a folder with ``HR/`` and, where there is one, ``LR/``. ``--dinov2 FOLDER`` (a Hugging Face DINOv2 folder) adds the distance of the output's features to the
truth's; without it that figure is null. Pictures are crops of photos that scikit-image ships, at 200 %: the photo itself is the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from f2i_runtime.errors import F2IError
from f2i_runtime.files import write_json
from f2i_runtime.metrics.fidelity import to_uint8
from f2i_runtime.photo.resample import resize
from f2i_runtime.photo.samples import load_rgb, sample_photo
from numpy.typing import NDArray
from PIL import Image

from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.encoder_distill import load_encoder
from f2i_quantize.train.held_out import Pixels, Upscale, bicubic, mean_scores, read_pairs, score_photo, upscaler
from f2i_quantize.train.losses import TokenDistance

ABLATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as trained", {}),
    ("null context", {"context": "null"}),
    ("patches only, no CLS", {"context": "patches"}),
    ("tokens averaged 2 x 2", {"token_stride": 2}),
)
"""What is taken away from the conditioning, as changes of the model's configuration."""

LOOKS: tuple[tuple[str, str, tuple[int, int]], ...] = (
    ("flat", "rocket.jpg", (20, 40)),
    ("noisy", "coffee.png", (120, 200)),
    ("text", "page.png", (40, 60)),
    ("face", "astronaut.png", (40, 160)),
)
"""Kind of crop, the sample photo, and the crop's top left corner."""
LOOK_SIDE = 128
NOISE_SIGMA = 10.0
"""The standard deviation of the noise that is added to the noisy crop, in 8-bit steps."""


def score_set(folder: Path, upscale: Upscale, distance: TokenDistance | None = None) -> dict[str, float | None]:
    """Mean figures over a benchmark set, as :class:`f2i_quantize.train.held_out.Scores` names them, and ``dinov2_distance`` (None without ``distance``)."""
    scores, distances = [], []
    for _, hr, lr in read_pairs(folder):
        sr = upscale(lr)
        scores.append(score_photo(hr, lr, sr))
        if distance:
            with torch.no_grad():
                distances.append(float(distance(_batch(sr), _batch(hr))))
    return asdict(mean_scores(scores)) | {"dinov2_distance": float(np.mean(distances)) if distances else None}


def ablate(model: F2IModel, folder: Path, tile: int) -> dict[str, dict[str, float]]:
    """PSNR-Y in dB of the model on a set with parts of its conditioning taken away, tiled at ``tile``; weights stay as they are."""
    table = {}
    for name, change in ABLATIONS:
        changed = replace(model, config=model.config.model_copy(update=change))
        table[name] = {"psnr_y": float(np.mean([score_photo(hr, lr, sr).psnr_y for hr, lr, sr in _enlarged(changed, folder, tile)]))}
    return table


def _enlarged(model: F2IModel, folder: Path, tile: int) -> Iterator[tuple[Pixels, Pixels, Pixels]]:
    upscale = upscaler(model, tile)
    for _, hr, lr in read_pairs(folder):
        yield hr, lr, upscale(lr)


def draw(upscale: Upscale, folder: Path) -> list[Path]:
    """Write ``<kind>.png`` for every kind of crop: bicubic on the left, the model on the right, every output pixel as 2 × 2."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, photo, (top, left) in LOOKS:
        crop = to_uint8(load_rgb(sample_photo(photo)))[top : top + LOOK_SIDE, left : left + LOOK_SIDE]
        if kind == "noisy":
            noise = np.random.default_rng(0).normal(0, NOISE_SIGMA, crop.shape)
            crop = np.clip(crop + noise, 0, 255).round().astype(np.uint8)
        both: NDArray[np.uint8] = np.concatenate([bicubic(crop), upscale(crop)], axis=1)
        path = folder / f"{kind}.png"
        Image.fromarray(both).resize((both.shape[1] * 2, both.shape[0] * 2), Image.Resampling.NEAREST).save(path)
        written.append(path)
    return written


def _batch(image: Pixels) -> torch.Tensor:
    """uint8 (h, w, 3) → float32 (1, 3, s, s) in [0, 1], resized to the square that the encoder takes."""
    square: Pixels = resize(image, TokenDistance.SIDE, TokenDistance.SIDE)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)[None])).float().div_(255)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 2 and one line on bad input."""
    given = _parser().parse_args(arguments)
    try:
        model = checkpoint.load(given.checkpoint)
        report: dict[str, Any] = {"checkpoint": given.checkpoint, "parameters": model.parameters(), "sets": {}}
        distance = TokenDistance(load_encoder(given.dinov2), model.config) if given.dinov2 else None
        for folder in given.set:
            methods = {"bicubic": bicubic, model.config.name: upscaler(model, None)}
            rows = {name: score_set(folder, upscale, distance) for name, upscale in methods.items()}
            report["sets"][folder.name] = rows
            for name, row in rows.items():
                print(folder.name, name, *(f"{key} {'-' if v is None else format(v, '.4f')}" for key, v in row.items()))  # noqa: T201
            if given.ablation:
                report.setdefault("ablation", {})[folder.name] = table = ablate(model, folder, model.config.tile)
                for name, ablated in table.items():
                    print(folder.name, name, f"psnr_y {ablated['psnr_y']:.4f}")  # noqa: T201
        if given.json:
            write_json(given.json, report)
        if given.pictures:
            for path in draw(upscaler(model, None), given.pictures):
                print(path)  # noqa: T201
    except F2IError as e:
        print(f"error: {e}", file=sys.stderr)  # noqa: T201
        return e.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m f2i_quantize.scoring.score_sets", description="Quality of a checkpoint on benchmark sets"
    )
    parser.add_argument("checkpoint", help="checkpoint folder, or a bundled model's name")
    parser.add_argument("--set", type=Path, action="append", default=[], help="benchmark folder with HR/ and LR/; repeatable")
    parser.add_argument("--ablation", action="store_true", help="take parts of the conditioning away")
    parser.add_argument("--dinov2", type=Path, help="DINOv2 folder for the feature distance")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--pictures", type=Path, help="folder for crops at 200 %%, bicubic beside the model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
