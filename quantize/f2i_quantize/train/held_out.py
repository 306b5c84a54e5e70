"""How good a model is, in torch: pairs of photos, tiled as the runtime tiles them, beside bicubic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.fidelity import psnr_db, psnr_y, ssim_y, to_uint8
from f2i_runtime.metrics.perceptual import gmsd, haarpsi, ms_ssim
from f2i_runtime.metrics.st_lpips import LEAST_SIDE, st_lpips
from f2i_runtime.photo.photo_listing import find_photos
from f2i_runtime.photo.resample import resize
from f2i_runtime.pipeline import tile_noise
from f2i_runtime.tiling.blend import TilePlan, upscale_array
from numpy.typing import NDArray

from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.crops import SCALE, Photo, PhotoSet, decode, halve

Pixels = NDArray[np.uint8]
Upscale = Callable[[Pixels], Pixels]
"""uint8 (h, w, 3) → uint8 (2h, 2w, 3)."""

OVERLAP = 32
"""The overlap of neighbouring tiles in low-resolution pixels; a quarter of the tile where that is less."""
_MS_SSIM_SIDE = 176


@dataclass(frozen=True)
class Scores:
    """Figures of one photo, or means over several. ``ms_ssim`` is None where a photo is too small for it."""

    psnr_y: float
    ssim_y: float
    ms_ssim: float | None
    gmsd: float
    haarpsi: float
    lr_psnr: float
    """LR consistency: the PSNR in dB over RGB of the downscaled output against the input: how far the model contradicts what it was given."""
    st_lpips: float | None = None
    """ST-LPIPS; None where its weights are not installed (the extra ``perceptual``) or a photo is too small for it."""


def bicubic(lr: Pixels) -> Pixels:
    """Returns MATLAB's ``imresize(lr, 2)``."""
    result: Pixels = resize(lr, lr.shape[0] * SCALE, lr.shape[1] * SCALE)
    return result


def upscaler(model: F2IModel, tile: int | None, *, overlap: int | None = None, device: torch.device | str = "cpu") -> Upscale:
    """A function that enlarges a photo with ``model``.

    With ``tile`` the photo is cut, reflected beyond its edges and blended exactly as the runtime does; with None the whole photo,
    reflected to a square the model accepts, is one tile.
    """
    made: dict[int, Pipeline] = {}

    def pipeline(side: int) -> Pipeline:
        if side not in made:
            made[side] = Pipeline(model, side).to(device).eval()
        return made[side]

    def upscale(lr: Pixels) -> Pixels:
        multiple = model.geometry().tile_multiple()
        side = tile or -(-max(lr.shape[:2]) // multiple) * multiple
        run = pipeline(side)

        @torch.no_grad()
        def one(pixels: NDArray[np.float32], position: tuple[int, int]) -> NDArray[np.float32]:
            tile_pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
            noise = torch.from_numpy(tile_noise(latent, position)).to(device) if model.config.noise else None
            result: NDArray[np.float32] = run(tile_pixels, noise).float().cpu().numpy()
            return result

        geometry = model.geometry()
        latent = (1, geometry.latent_channels(), *(side // geometry.latent_factor(),) * 2)

        shared = min(OVERLAP, side // 4) if overlap is None else overlap
        plan = TilePlan(*lr.shape[:2], tile=side, overlap=shared if tile else 0)
        return to_uint8(upscale_array((lr / 255.0).astype(np.float32), plan, one))

    return upscale


def score_photo(hr: Pixels, lr: Pixels, sr: Pixels) -> Scores:
    """All figures of one enlarged photo against its truth. Both (2h, 2w, 3); PSNR-Y and SSIM-Y with a border of 2 cropped."""
    truth, output = hr / 255.0, sr / 255.0
    return Scores(
        psnr_y(hr, sr, SCALE),
        ssim_y(hr, sr, SCALE),
        ms_ssim(truth, output) if min(hr.shape[:2]) >= _MS_SSIM_SIDE else None,
        gmsd(truth, output),
        haarpsi(truth, output),
        psnr_db(lr / 255.0, halve(sr) / 255.0),
        st_lpips(truth, output) if min(hr.shape[:2]) >= LEAST_SIDE else None,
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Mean of every figure over photos, those that do not have it left out of its mean."""
    found = {f.name: [value for s in scores if (value := getattr(s, f.name)) is not None] for f in fields(Scores)}
    return Scores(**{name: float(np.mean(values)) if values else None for name, values in found.items()})  # type: ignore[arg-type]


def score_photos(model: F2IModel, photos: Iterable[Photo], *, tile: int, device: torch.device | str = "cpu", window: int = 256) -> float:
    """Mean PSNR-Y in dB over the middle ``window`` low-resolution pixels per side of each photo, which chooses the best checkpoint.

    Leaves the model's parts in training mode where they were.
    """
    parts = model.parts().values()
    training = [part.training for part in parts]
    for part in parts:
        part.eval()
    upscale = upscaler(model, tile, device=device)
    scores = []
    for photo in (_middle(photo, window) for photo in photos):
        scores.append(psnr_y(photo.hr, upscale(photo.lr), SCALE))
    for part, mode in zip(parts, training, strict=True):
        part.train(mode)
    return float(np.mean(scores))


def upscaled_by(teacher: F2IModel, photos: PhotoSet, *, tile: int, device: torch.device | str = "cpu", window: int = 256) -> PhotoSet:
    """Returns the middle of each photo with what ``teacher`` makes of it as its truth: a student of it is judged by how near it comes."""
    upscale = upscaler(teacher, tile, device=device)
    middles = (_middle(photo, window) for photo in photos.photos)
    return replace(photos, photos=tuple(replace(photo, hr=upscale(photo.lr)) for photo in middles))


def _middle(photo: Photo, window: int) -> Photo:
    height, width = (min(side, window) for side in photo.lr.shape[:2])
    top, left = ((side - kept) // 2 for side, kept in zip(photo.lr.shape[:2], (height, width), strict=True))
    lr = photo.lr[top : top + height, left : left + width]
    return replace(photo, lr=lr, hr=photo.hr[SCALE * top : SCALE * (top + height), SCALE * left : SCALE * (left + width)])


def read_pairs(folder: Path) -> list[tuple[str, Pixels, Pixels]]:
    """(name, hr, lr) of a benchmark set: ``HR/`` and, where there is one, ``LR/`` with the same names; else LR is made by MATLAB bicubic.

    HR is cut to twice LR's size. Raises UsageError when a set is empty or LR and HR do not fit.
    """
    high = folder / "HR" if (folder / "HR").is_dir() else folder
    pairs = []
    for path in find_photos(high, recursive=False):
        hr = decode(path)
        given = folder / "LR" / path.name
        lr = decode(given, 1) if given.is_file() else halve(hr)
        height, width = (SCALE * side for side in lr.shape[:2])
        if hr.shape[0] < height or hr.shape[1] < width:
            raise UsageError(f"{given}: {lr.shape[1]} x {lr.shape[0]} px, expected half of HR's {hr.shape[1]} x {hr.shape[0]}")
        pairs.append((path.name, hr[:height, :width], lr))
    return pairs


def evaluate(folder: Path, upscale: Upscale, progress: Callable[[str, Scores], None] | None = None) -> Scores:
    """Mean figures of ``upscale`` over a benchmark set (see :func:`read_pairs`)."""
    scores = []
    for name, hr, lr in read_pairs(folder):
        scores.append(score_photo(hr, lr, upscale(lr)))
        if progress:
            progress(name, scores[-1])
    return mean_scores(scores)
