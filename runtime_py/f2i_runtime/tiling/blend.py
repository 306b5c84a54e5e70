"""Cut a photo into tiles, upscale each and blend them, in memory that does not grow with the photo's height and little with its width.

``upscale_blocks`` is the work: it gives finished pieces as soon as no later tile touches them. ``upscale_rows`` gathers them into rows,
``upscale_array`` into an image. The plan that they follow is ``TilePlan``; images are float32 RGB in [0, 1].
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError
from f2i_runtime.tiling.tile_plan import Fade, Pixels, TilePlan, window

__all__ = ["Fade", "Pixels", "TilePlan", "upscale_array", "upscale_blocks", "upscale_rows", "window"]

ReadRows = Callable[[int, int], NDArray[Any]]
Decode = Callable[[NDArray[Any]], Pixels]
UpscaleTile = Callable[[Pixels, tuple[int, int]], Pixels]

# Rows asked for at a time, so that converting them needs little memory beside the rows of a tile.
_READ = 64


def upscale_blocks(
    read_rows: ReadRows,
    plan: TilePlan,
    upscale_tile: UpscaleTile,
    *,
    decode: Decode | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
) -> Generator[tuple[int, int, Pixels], None, None]:
    """Upscale a photo tile by tile, yielding every finished piece once: by rows of tiles, from left to right in each.

    Held in memory: a row of tiles before upscaling (two with ``threads``), the part of the last row of tiles that the next one will be
    blended into, and the tiles in flight.

    Args:
        read_rows: ``read_rows(y0, y1)`` gives float32 (y1 - y0, width, 3), or with ``decode`` samples of any type, (y1 - y0, width, 3) or
            (y1 - y0, width, 1) for grey. Every row is asked for once, from top to bottom.
        plan: where the tiles lie.
        upscale_tile: float32 (1, 3, tile, tile), contiguous, and the tile's absolute (y, x) to (1, 3, tile * scale, tile * scale). With
            ``threads`` above 1 it is called from several threads at once.
        decode: samples of any shape to float32 in [0, 1] of that shape. Rows then wait for their tiles as they are stored, in a quarter of the memory.
        progress: called with (tiles done, tiles in all) after each tile, in the caller's thread.
        threads: 0 does everything in the caller's thread. N runs N tiles at a time in threads of their own, and reads ahead in another,
            while the caller blends and writes. The result is the same bit for bit.

    Yields:
        (y, x, block) in output pixels, block float32 (n, m, 3), which the caller may keep or change. Values are not clipped.

    Raises:
        UsageError: rows or tiles of another shape than asked for, a negative ``threads``.
        Whatever ``read_rows``, ``upscale_tile`` or ``progress`` raise; threads are ended first.
    """
    if threads < 0:
        raise UsageError(f"cannot work with {threads} threads; expected 0 or more")
    scale, side = plan.scale, plan.tile * plan.scale
    finished, advance = _advances(plan.rows, plan.output_shape[0], scale), _advances(plan.columns, plan.output_shape[1], scale)
    # What rows of tiles above leave to be completed, at the top of the present row of tiles.
    carry = np.zeros((3, max((side - n for n in finished[:-1]), default=0), plan.output_shape[1]), dtype=np.float32)
    carried, done = 0, 0
    with contextlib.ExitStack() as stack:
        results = _results(read_rows, plan, upscale_tile, decode, threads, stack)
        for r, top in enumerate(plan.rows):
            kept = side - finished[r] if r + 1 < len(plan.rows) else 0
            # This tile and what its left neighbours leave for it to complete.
            sum_ = np.zeros((3, side, side), dtype=np.float32)
            for c, left in enumerate(plan.columns):
                sum_ += next(results) * (plan.row_weights[r][:, None] * plan.column_weights[c])
                done += 1
                if progress is not None:
                    progress(done, plan.count)
                n, m, x = finished[r], advance[c], left * scale
                sum_[:, :carried, :m] += carry[:, :carried, x : x + m]
                block = np.empty((n, m, 3), dtype=np.float32)
                for channel in range(3):  # twice as fast as one transposed copy
                    block[:, :, channel] = sum_[channel, :n, :m]
                carry[:, :kept, x : x + m] = sum_[:, n : n + kept, :m]
                yield top * scale, x, block
                sum_[:, :, : side - m] = sum_[:, :, m:]
                sum_[:, :, side - m :] = 0.0
            carried = kept


def _advances(origins: tuple[int, ...], length: int, scale: int) -> list[int]:
    """Output pixels from each origin to the next, and from the last to the photo's end."""
    ends = [*(origin * scale for origin in origins[1:]), length]
    return [end - origin * scale for origin, end in zip(origins, ends, strict=True)]


def upscale_rows(
    read_rows: ReadRows,
    plan: TilePlan,
    upscale_tile: UpscaleTile,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
) -> Generator[Pixels, None, None]:
    """``upscale_blocks`` gathered into finished rows, float32 (n, width * scale, 3) from top to bottom, n varying; same arguments, errors.

    Needs a row of tiles after upscaling in float32 beside what ``upscale_blocks`` holds.
    """
    width = plan.output_shape[1]
    blocks = upscale_blocks(read_rows, plan, upscale_tile, progress=progress, threads=threads)
    with contextlib.closing(blocks):
        rows = np.empty((0, width, 3), dtype=np.float32)
        for _, x, block in blocks:
            if x == 0:
                rows = np.empty((len(block), width, 3), dtype=np.float32)
            rows[:, x : x + block.shape[1]] = block
            if x + block.shape[1] == width:
                yield rows


def _strips(read_rows: ReadRows, plan: TilePlan, decoded: bool, ahead: bool) -> Iterator[NDArray[Any]]:
    """Rows of tiles before upscaling, (channels, tile, columns[-1] + tile), filled by reflection where the photo ends before the tile.

    Unless ``ahead``, a strip is overwritten by the next one.
    """
    strip: NDArray[Any] = np.empty((0, 0, 0), dtype=np.float32)
    bottom = 0
    for top in plan.rows:
        height = min(plan.tile, plan.height - top)
        known = bottom - top
        following = np.empty_like(strip) if ahead else strip
        following[:, :known] = strip[:, strip.shape[1] - known :]
        while bottom < top + height:
            y0, bottom = bottom, min(bottom + _READ, top + height)
            rows = read_rows(y0, bottom)
            expected = [(bottom - y0, plan.width, channels) for channels in ((3,) if decoded else (3, 1))]
            if rows.shape not in expected:
                raise UsageError(f"rows {y0} to {bottom} came as {rows.shape}; expected {expected[0]}")
            if following.size == 0:
                dtype = np.float32 if decoded else rows.dtype
                following = np.empty((rows.shape[2], min(plan.tile, plan.height), plan.width), dtype=dtype)
            following[:, y0 - top : bottom - top] = rows.transpose(2, 0, 1)
        strip = following[:, :height]
        below, beside = plan.tile - height, max(0, plan.columns[-1] + plan.tile - plan.width)
        yield np.pad(strip, ((0, 0), (0, below), (0, beside)), mode="reflect") if below or beside else strip


def _tiles(
    read_rows: ReadRows, plan: TilePlan, decode: Decode | None, read_ahead: ThreadPoolExecutor | None
) -> Iterator[tuple[Pixels, tuple[int, int]]]:
    """Every tile in order, (1, 3, tile, tile) with its position; the next row of tiles is read meanwhile if there is a thread for it."""
    strips = _strips(read_rows, plan, decode is None, read_ahead is not None)
    ahead: Future[NDArray[Any]] | None = None
    for r, top in enumerate(plan.rows):
        current = ahead.result() if ahead is not None else next(strips)
        if read_ahead is not None and r + 1 < len(plan.rows):
            ahead = read_ahead.submit(next, strips)
        for left in plan.columns:
            cut = current[:, :, left : left + plan.tile]
            tile = np.empty((1, 3, plan.tile, plan.tile), dtype=np.float32)
            # A copy in any case: the strip's last rows are read once more for the next one. Grey becomes three equal channels.
            tile[0] = cut if decode is None else decode(cut)
            yield tile, (top, left)


def _results(
    read_rows: ReadRows, plan: TilePlan, upscale_tile: UpscaleTile, decode: Decode | None, threads: int, stack: contextlib.ExitStack
) -> Iterator[Pixels]:
    """Every upscaled tile in order, (3, side, side) float32."""
    expected = (1, 3, plan.tile * plan.scale, plan.tile * plan.scale)

    def one(tile: Pixels, position: tuple[int, int]) -> Pixels:
        result = np.asarray(upscale_tile(tile, position), dtype=np.float32)
        if result.shape != expected:
            raise UsageError(f"the upscaled tile at {position} has shape {result.shape}; expected {expected}")
        planes: Pixels = result[0]
        return planes

    if threads == 0:
        yield from (one(tile, position) for tile, position in _tiles(read_rows, plan, decode, None))
        return
    # Closed by the caller's stack, so that an error or Ctrl-C anywhere ends the threads before it is seen outside.
    reader, workers = (ThreadPoolExecutor(n, thread_name_prefix=name) for n, name in ((1, "f2i-read"), (threads, "f2i-tile")))
    for executor in (reader, workers):
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
    flying: deque[Future[Pixels]] = deque()
    for tile, position in _tiles(read_rows, plan, decode, reader):
        flying.append(workers.submit(one, tile, position))
        # One more than there are workers, so that none waits for the blending.
        if len(flying) > threads:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()


def upscale_array(image: Pixels, plan: TilePlan, upscale_tile: UpscaleTile, *, threads: int = 0) -> Pixels:
    """``upscale_rows`` of an image in memory: float32 (height, width, 3) to (height * scale, width * scale, 3)."""
    if image.shape != (plan.height, plan.width, 3):
        raise UsageError(f"image of shape {image.shape} does not fit the plan; expected {(plan.height, plan.width, 3)}")
    return np.concatenate(list(upscale_rows(lambda y0, y1: image[y0:y1], plan, upscale_tile, threads=threads)))
