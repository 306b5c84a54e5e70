"""What variants are compared on whose chip is simulated, seconds for a tile: a golden tile, and more only where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from f2i_runtime.bundle.store import Bundle, load_array
from f2i_runtime.engines.session import Session
from f2i_runtime.pipeline import Pipeline, photo_plan
from f2i_runtime.validation.reference_run import Array, Crop, ReferenceRun, run_reference
from f2i_runtime.validation.validate_options import ValidateOptions

Progress = Callable[[str, int, int], None]
PHOTO_SIDE = 1.5
"""Side of the stitched crops in tiles, which makes four of them."""
SANITY_RUNS = 2


def few_tiles(bundle: Bundle, options: ValidateOptions, progress: Progress) -> ReferenceRun:
    """Returns the golden tile, alone and as a photo of one tile, followed by as many other tiles and stitched crops as the options ask for.

    An export has run the golden tile already, so that its result is in the cache. With another bundle's reference, or a ground truth, there is no golden tile.
    Raises as :func:`f2i_runtime.validation.reference_run.run_reference`.
    """
    wanted = replace(options, tiles=options.simulated_tiles, photos=options.simulated_photos, photo_side=PHOTO_SIDE)
    found = run_reference(bundle, wanted, progress)
    # No time of the reference: nothing is compared with a simulator's.
    found = replace(found, crops=tuple(replace(crop, seconds=math.nan) for crop in found.crops))
    if options.against is not None or not bundle.manifest.golden:
        return found
    golden = bundle.manifest.golden[0]
    tensors = {name: load_array(bundle.check(record)) for name, record in golden.tensors.items()}
    tensors |= {name: bundle.constant(name) for name in bundle.manifest.constants}
    tiles = (tensors, *found.tiles[: options.simulated_tiles - 1])
    crops = found.crops if options.ground_truth is not None else (_one_tile(golden.name, tensors), *found.crops)
    return replace(found, tiles=tiles, crops=crops)


def _one_tile(name: str, tensors: Mapping[str, Array]) -> Crop:
    """The golden tile as a photo."""
    lr, sr = (np.ascontiguousarray(tensors[tensor][0].transpose(1, 2, 0)) for tensor in ("lr", "sr"))
    return Crop(f"{name}, one tile", Path(name), (lr.shape[0], lr.shape[1]), (0, 0), lr, sr, math.nan)


@dataclass
class Counted:
    """A session that says how many of the runs of a validation are done."""

    session: Session
    engine: str
    tick: Callable[[], None]

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the session, and counts."""
        output = self.session.run(inputs)
        self.tick()
        return output

    def close(self) -> None:
        """Closes the session."""
        self.session.close()


def count_runs(pipeline: Pipeline, truth: ReferenceRun, progress: Progress) -> None:
    """Makes every run of the pipeline's components report ``progress``: a validation on a simulator, or on a GPU's software driver, takes minutes."""
    calls = len(pipeline.bundle.manifest.dataflow)
    stitched = sum(photo_plan(pipeline.bundle, *crop.lr.shape[:2]).count for crop in truth.crops)
    total, done = calls * (len(truth.tiles) + stitched + SANITY_RUNS), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(f"{pipeline.variant} in software", min(done, total), total)

    for name, session in pipeline.sessions.items():
        pipeline.sessions[name] = Counted(session, session.engine, tick)
