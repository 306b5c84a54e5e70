"""What ``f2i validate`` is asked: the bundle's variants, the photos, and how many tiles of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Selection, Variant


@dataclass(frozen=True)
class ValidateOptions:
    """What to validate with. Defaults: 16 tiles and two photos from those scikit-image ships, every variant of the bundle."""

    images: Path | None = None
    ground_truth: Path | None = None
    against: Bundle | None = None
    target: str | None = None
    precision: str | None = None
    tiles: int = 16
    photos: int = 2
    photo_side: float = 2.5
    """Side of the stitched crops, in tiles."""
    threads: int = 0
    seed: int = 0
    find_bad_op: bool = False
    """Walk every Core ML program beside the one it was converted from; see :mod:`f2i_runtime.validation.coreml_findings`."""
    accelerator: str | None = None
    simulated_tiles: int = 1
    """Tiles for variants whose chip is simulated, seconds for each: the golden tile first."""
    simulated_photos: int = 0
    """Stitched photos for them beside the golden tile, four tiles each."""

    @property
    def only(self) -> Selection:
        """Which variants of the bundle are validated."""
        return Selection(self.target, self.precision, self.accelerator)


def chosen_variants(bundle: Bundle, options: ValidateOptions) -> list[Variant]:
    """Returns every complete variant that the options select. Raises UsageError when there is none."""
    chosen = bundle.manifest.variants(options.only)
    if not chosen:
        have = bundle.manifest.listed()
        raise UsageError(f"{bundle.root}: nothing to validate for that target, precision and accelerator; the bundle has {have}")
    return chosen
