"""Photos to train with: folders of files → (low-resolution, high-resolution) crops, the same for one seed on any number of processes.

Every random choice of crop ``i`` comes from a generator seeded with ``(seed, i)``. A run that stops at step n therefore goes on with
the crops it would have had, whatever the number of workers, and no generator state is saved.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.files import atomic_file, sha256_file
from f2i_runtime.photo.photo_listing import find_photos
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.resample import resize
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from f2i_quantize.train.degrade import degrade

Pixels = NDArray[np.uint8]
Degradation = Literal["bicubic", "second-order"]

SCALE = 2
CACHE_VERSION = 2
"""Part of a cached file's name; raised when what is computed from a photo changes."""


@dataclass(frozen=True)
class Photo:
    """One photo, decoded: ``hr`` uint8 (2h, 2w, 3) and its MATLAB-bicubic half ``lr`` uint8 (h, w, 3)."""

    name: str
    sha256: str
    hr: Pixels
    lr: Pixels


@dataclass(frozen=True)
class Skipped:
    """A file that was not used, and why, in one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class PhotoSet:
    """What a folder gave, in order of file name."""

    photos: tuple[Photo, ...]
    skipped: tuple[Skipped, ...]

    def split(self, holdout: int) -> tuple[PhotoSet, PhotoSet]:
        """(training, validation): the ``holdout`` photos whose hashes are smallest validate, whatever the names and their order."""
        held = {p.sha256 for p in sorted(self.photos, key=lambda p: p.sha256)[:holdout]}
        return (
            PhotoSet(tuple(p for p in self.photos if p.sha256 not in held), self.skipped),
            PhotoSet(tuple(p for p in self.photos if p.sha256 in held), ()),
        )


def halve(hr: Pixels) -> Pixels:
    """MATLAB ``imresize(hr, 0.5)``: antialiased bicubic, uint8 (2h, 2w, 3) → (h, w, 3). Even sides are the caller's to provide."""
    result: Pixels = resize(hr, hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    return result


def decode(path: Path, multiple: int = SCALE) -> Pixels:
    """Returns a photo of any kind that ``f2i run`` reads as uint8 RGB (h, w, 3), upright, sides cut to ``multiple``. Raises PhotoError, also for damage."""
    with PhotoReader(path) as reader:
        rgb = np.rint(reader.rows(0, reader.height) * 255).astype(np.uint8)
        if reader.damaged:
            raise PhotoError(f"{path}: damaged, part of the picture is missing; copy it again from its source")
    height, width = (side - side % multiple for side in rgb.shape[:2])
    return np.ascontiguousarray(rgb[:height, :width])


def read_photo(path: Path, root: Path, min_side: int, cache: Path | None) -> Photo | Skipped:
    """One file → a photo, or why not. With ``cache`` the decoded pair is kept there under the file's hash and read back instead."""
    name = path.relative_to(root).as_posix()
    try:
        digest = sha256_file(path)
        kept = cache / f"{digest}-v{CACHE_VERSION}.npz" if cache else None
        if kept and kept.is_file():
            with np.load(kept, allow_pickle=False) as pair:
                hr, lr = pair["hr"], pair["lr"]
        else:
            hr = decode(path)
            if min(hr.shape[:2]) < min_side:
                return Skipped(name, f"{hr.shape[1]} x {hr.shape[0]} px, expected at least {min_side} per side")
            lr = halve(hr)
            if kept:
                with atomic_file(kept) as temporary, temporary.open("wb") as file:
                    np.savez(file, hr=hr, lr=lr)
    except (UsageError, OSError, ValueError) as e:
        return Skipped(name, f"cannot be decoded: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
    if min(hr.shape[:2]) < min_side:
        return Skipped(name, f"{hr.shape[1]} x {hr.shape[0]} px, expected at least {min_side} per side")
    return Photo(name, digest, hr, lr)


def read_folder(folder: Path, *, min_side: int = 0, cache: Path | None = None, processes: int = 1) -> PhotoSet:
    """All photos under ``folder``, decoded in ``processes`` processes; files that cannot be used are listed in ``skipped``.

    Raises UsageError when the folder is missing or gives no usable photo.
    """
    paths = find_photos(folder)
    read = functools.partial(read_photo, root=folder, min_side=min_side, cache=cache)
    pool: Any = ProcessPoolExecutor(min(processes, len(paths)), get_context("spawn")) if processes > 1 and len(paths) > 1 else nullcontext()
    with pool as executor:
        results = list(executor.map(read, paths, chunksize=4)) if isinstance(executor, Executor) else [read(p) for p in paths]
    found = PhotoSet(tuple(r for r in results if isinstance(r, Photo)), tuple(r for r in results if isinstance(r, Skipped)))
    if not found.photos:
        first = f"; first reason: {found.skipped[0].name}: {found.skipped[0].reason}" if found.skipped else ""
        raise UsageError(f"{folder}: {len(paths)} files, none usable; expected photos of at least {min_side} px per side{first}")
    return found


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Item ``i`` → (lr (3, crop, crop), hr (3, 2·crop, 2·crop)), float32 in [0, 1], turned and mirrored at random.

    Photos are drawn in proportion to their area. ``candidates`` crops are looked at and the one with the most detail is taken.
    ``length`` is how many items there are; the generator of item ``i`` depends on ``seed`` and ``i`` alone.
    """

    def __init__(
        self, photos: Sequence[Photo], crop: int, length: int, seed: int, degradation: Degradation = "bicubic", candidates: int = 1
    ) -> None:
        usable = [p for p in photos if min(p.lr.shape[:2]) >= crop]
        if not usable:
            raise UsageError(f"no photo has {crop * SCALE} px per side, which crop {crop} needs; use a smaller crop or larger photos")
        self.photos, self.crop, self.length, self.seed = usable, crop, length, seed
        self.degradation, self.candidates = degradation, candidates
        areas = np.array([p.lr.shape[0] * p.lr.shape[1] for p in usable], dtype=np.float64)
        self.cumulative = np.cumsum(areas / areas.sum())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        hr, lr = max((self._crop(rng) for _ in range(self.candidates)), key=lambda pair: _detail(pair[1]) if self.candidates > 1 else 0)
        if self.degradation == "second-order":
            lr = degrade(hr, self.crop, rng)
        symmetry = int(rng.integers(8))
        return _tensor(_turn(lr, symmetry)), _tensor(_turn(hr, symmetry))

    def _crop(self, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        photo = self.photos[min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.photos) - 1)]
        top, left = (int(rng.integers(side - self.crop + 1)) for side in photo.lr.shape[:2])
        large = self.crop * SCALE
        hr = photo.hr[top * SCALE : top * SCALE + large, left * SCALE : left * SCALE + large]
        return hr, photo.lr[top : top + self.crop, left : left + self.crop]


def _detail(lr: Pixels) -> float:
    return float(np.abs(np.diff(lr[..., 1].astype(np.int16), axis=0)).mean())


def _turn(image: Pixels, symmetry: int) -> Pixels:
    """One of the eight symmetries of the square."""
    image = image[::-1] if symmetry & 1 else image
    image = image[:, ::-1] if symmetry & 2 else image
    return image.transpose(1, 0, 2) if symmetry & 4 else image


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)


def batches(
    dataset: CropDataset, batch: int, *, start: int, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of steps ``start``, ``start + 1``, …: lr (batch, 3, c, c), hr (batch, 3, 2c, 2c).

    Step s of process ``rank`` takes items ``(s · world + rank) · batch`` and on, so that ``world`` processes see what one process
    with a batch ``world`` times as large would.
    """
    per_step = batch * world
    order = [range(s * per_step + rank * batch, s * per_step + (rank + 1) * batch) for s in range(start, dataset.length // per_step)]
    yield from DataLoader(dataset, batch_sampler=order, num_workers=min(workers, os.cpu_count() or 1))  # type: ignore[arg-type]
