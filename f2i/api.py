"""The public functions of F2I mobile. ``import f2i`` offers them as ``f2i.<name>``; the ``f2i`` command is made of the same calls.

    import f2i

    bundle = f2i.export("nano", "bundle", precisions=["fp16"])
    with f2i.open_engine(bundle) as engine:
        f2i.upscale_file(engine, "photo.jpg", "photo_x2.jpg")
    report = f2i.validate(bundle)
    print(report.passed)

Errors are the tree of :mod:`f2i_runtime.errors`: catch :class:`f2i.F2IError` for all of them. Everything heavy is imported by the function that needs it;
a package that is not installed is a :class:`f2i.MissingPackageError`, whose message has the command that installs it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from f2i_runtime.bundle import store
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import MissingPackageError
from f2i_runtime.pipeline import PhotoOptions, Pipeline, choose_variant, open_pipeline, upscale_image, upscale_photo
from f2i_runtime.targets import Selection
from f2i_runtime.targets import targets as known_targets

if TYPE_CHECKING:
    import numpy as np
    from f2i_bench.bench import BenchOptions
    from f2i_bench.core.protocol import BenchReport
    from f2i_bench.devices.web.web_options import Address
    from f2i_export.schedule import Event
    from f2i_runtime.validation.results import Report
    from f2i_runtime.validation.validate_options import ValidateOptions

    from f2i.inspection import Inspection

__all__ = [
    "ExportSettings",
    "TargetSupport",
    "bench",
    "export",
    "inspect",
    "list_targets",
    "open_bundle",
    "open_engine",
    "quantize",
    "upscale",
    "upscale_file",
    "validate",
    "verify",
]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class TargetSupport:
    """What this machine can do with an export target: its name, its label for people, its precisions, its accelerators, and whether it can be exported and run
    here."""

    name: str
    label: str
    precisions: tuple[str, ...]
    accelerators: tuple[str, ...]
    can_export: bool
    can_run: bool


@dataclass(frozen=True)
class ExportSettings:
    """How :func:`export` lowers, beside targets and precisions.

    ``tile_size``: side of the input tile in pixels; 0 takes the checkpoint's own.
    ``accelerators``: each target is lowered to each of them, ``cpu`` or ``hexagon``. ``socs``: the Snapdragon chips that ``hexagon`` is compiled for, by model or
    marketing name; none takes ``sm8750``. ``overlap``: of tiles, in pixels, or ``"auto"``; None takes a sixteenth of a tile, an eighth with int8 activations.
    ``options``: those of targets by name, as the command has them: ``{"ios": "17"}``.
    """

    tile_size: int = 0
    accelerators: Sequence[str] = ("cpu",)
    socs: Sequence[str] = ()
    overlap: int | Literal["auto"] | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def list_targets() -> tuple[TargetSupport, ...]:
    """Returns every export target. ``can_export`` and ``can_run`` say whether the packages are installed that lower to it and that run it.

    Raises:
        UsageError: an installed package declares a target that cannot be loaded.
    """
    return tuple(
        TargetSupport(
            record.name, record.label, record.precisions, record.accelerators, record.converter.installed(), record.engine.installed()
        )
        for record in known_targets().values()
    )


def open_bundle(path: str | PathLike[str]) -> Bundle:
    """Opens a bundle: a folder that :func:`export` or ``f2i export`` wrote. Reads its manifest and no other file.

    Raises:
        BundleError: no such folder, no manifest in it, or a manifest that is not valid.
    """
    return store.open_bundle(Path(path))


def open_engine(
    bundle: Bundle, *, target: str | None = None, precision: str | None = None, accelerator: str | None = None, threads: int = 0
) -> Pipeline:
    """Loads every component of one variant of a bundle into its engine: to upscale several images without loading again.

    Args:
        target: a target of the bundle, or ``"torch"`` for the full-precision reference; None takes the fastest engine of this
            machine that the bundle has an artifact for.
        precision: such as ``"fp16"``; None takes a float precision where the bundle has one. With ``"torch"`` an integer precision runs the QDQ programs.
        accelerator: such as ``"cpu"``; None takes what the bundle has.
        threads: of the engine; 0 takes its default.

    Returns:
        A context manager for :func:`upscale` and :func:`upscale_file`, to be used from one thread at a time. ``engine`` says what computes.

    Raises:
        BundleError: the bundle has no such variant, or a file of it is missing or was changed.
        MissingPackageError: the engine is not installed.
        ToolchainError: the engine refuses the file.
    """
    return open_pipeline(bundle, choose_variant(bundle, Selection(target, precision, accelerator)), threads=threads)


def upscale(model: Bundle | Pipeline, image: np.ndarray, options: PhotoOptions | None = None) -> np.ndarray:
    """Upscales an image in memory by the model's factor (2), tile by tile, with overlapping tiles blended.

    Args:
        model: what :func:`open_engine` gave; or a bundle, whose engine is then loaded for this call alone.
        image: RGB (height, width, 3), of any size from 1 × 1: float32 in [0, 1], or uint8; sRGB-encoded, as photos are stored.
        options: overlap of the tiles and colour fix; None takes the bundle's. Quality and bit depth apply to files only.

    Returns:
        (height * 2, width * 2, 3), of the image's dtype: float32 clipped to [0, 1], or uint8, rounded half up.

    Raises:
        UsageError: another dtype or shape, or values that are not finite or not in [0, 1].
        ToolchainError: the engine fails, or gives NaN or infinity.
        And what :func:`open_engine` raises, when ``model`` is a bundle.
    """
    with _engine(model) as engine:
        return upscale_image(engine, image, options)


def upscale_file(
    model: Bundle | Pipeline,
    source: str | PathLike[str],
    destination: str | PathLike[str],
    options: PhotoOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Upscales a photo from file to file, in memory that depends on its width and not on its height.

    Args:
        model: as for :func:`upscale`.
        source: JPEG, PNG, TIFF, WebP, AVIF, or HEIC where ``pillow-heif`` is installed. Its orientation is applied.
        destination: its suffix chooses JPEG, PNG, TIFF, WebP or AVIF. EXIF and ICC profile are kept where the format holds them.
        options: quality, bit depth, overlap and colour fix.
        progress: called with the tiles done and the tiles in all.

    Returns:
        Notes for the user, such as a format that cannot hold what the photo has. The output is there, complete; after an error nothing is.

    Raises:
        PhotoError: the photo cannot be read or the output cannot be written.
        UsageError: a quality, bit depth or overlap that does not exist.
        ToolchainError: the engine fails.
        And what :func:`open_engine` raises, when ``model`` is a bundle.
    """
    with _engine(model) as engine:
        return upscale_photo(engine, Path(source), Path(destination), options, progress)


def verify(bundle: Bundle) -> int:
    """Checks the size and the SHA-256 of every file that the manifest lists, and that there is no other. Needs no engine. Returns the bytes read.

    Files that systems put into any folder, such as ``.DS_Store``, are left aside.

    Raises:
        BundleError: the first file that is missing, was changed, or is not listed.
    """
    return store.verify(bundle)


def inspect(bundle: Bundle) -> Inspection:
    """Returns a row per artifact: its bytes, operations, delegated share, partitions, and what is left outside and why.

    Shares are from 0 to 1; what does not apply is None. ``as_json()`` is what ``f2i inspect --json`` prints.

    Raises:
        BundleError: an artifact that must be read is missing or was changed.
    """
    from f2i.inspection import inspect_bundle

    return inspect_bundle(bundle)


def validate(bundle: Bundle, options: ValidateOptions | None = None, progress: Progress | None = None) -> Report:
    """Compares every variant of a bundle with its full-precision reference, on real photo tiles, and judges it by the bundle's own gates.

    Args:
        options: photos, variants, numbers of tiles; None takes 16 tiles and two of the photos that scikit-image ships, and every variant.

    Returns:
        The report: ``passed``, its rows and gates, and ``as_json()``. A gate that fails is in it and raises nothing.

    Raises:
        UsageError: options that select nothing, or a folder without photos.
        BundleError, MissingPackageError, ToolchainError: as :func:`open_engine`.
    """
    from f2i_runtime.validation.validate import validate
    from f2i_runtime.validation.validate_options import ValidateOptions

    return validate(bundle, options or ValidateOptions(), progress or _quiet)


def export(
    checkpoint: str | PathLike[str],
    out: str | PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp16",),
    settings: ExportSettings | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Bundle:
    """Lowers a checkpoint to phones' formats and writes one bundle, complete or absent. What an earlier export finished is not done again.

    Args:
        checkpoint: a Diffusers-format folder, or a bundled model or preset: ``"nano"``, ``"pico"``, ``"tiny"``, ``"mobile"``, ``"paper"``.
        out: the folder to write; a bundle that is there is replaced in one step.
        targets: names of :func:`list_targets`; None takes all of them.
        precisions: integer ones need a checkpoint that :func:`quantize` wrote.
        settings: tile, overlap, accelerators, chips, and options of targets; None takes the CPU and every default.
        on_event: called as each job starts, reaches a stage and ends.

    Raises:
        UsageError: an unknown target, precision or tile, a folder that is not a bundle, too little memory.
        CheckpointError: a checkpoint with a wrong file, key or shape.
        MissingPackageError: a converter is not installed.
        ToolchainError: a converter fails; its log is named.
    """
    _need_model_packages("exporting")
    from f2i_export.write_bundle import ExportOptions, export_bundle

    names = tuple(support.name for support in list_targets()) if targets is None else tuple(targets)
    chosen = settings or ExportSettings()
    request = ExportOptions(
        str(checkpoint),
        Path(out),
        names,
        tuple(precisions),
        chosen.tile_size,
        chosen.overlap,
        options=tuple(sorted(chosen.options.items())),
        accelerators=tuple(chosen.accelerators),
        socs=tuple(chosen.socs),
    )
    return export_bundle(request, on_event or (lambda _: None))


def quantize(
    checkpoint: str | PathLike[str],
    out: str | PathLike[str],
    *,
    recipe: str = "w8a8",
    images: str | PathLike[str] | None = None,
    tile_size: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Calibrates a checkpoint on photos and writes a checkpoint that exports to the recipe's precision, on every target the same.

    Args:
        checkpoint: as for :func:`export`.
        out: the folder to write; it must not exist.
        recipe: ``"w8a8"``, ``"w8a8-mixed"``, ``"w8a16"``, ``"w8"``, ``"p8"``, ``"p6"``, ``"p4"``, or the path of a TOML file.
        images: a folder of photos; None takes those that scikit-image ships.
        tile_size: side of the calibration tiles in pixels; 0 takes the checkpoint's own.

    Returns:
        The calibration record: photos, seed, and the simulated SQNR of each component in dB (``simulated_sqnr_db``).

    Raises:
        UsageError: an unknown or unfitting recipe, no photos, or ``out`` exists.
        CheckpointError, MissingPackageError: as :func:`export`.
    """
    _need_model_packages("quantizing")
    from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
    from f2i_quantize.ptq.recipe import load_recipe

    options = QuantizeOptions(str(checkpoint), load_recipe(recipe), Path(out), None if images is None else Path(images), tile_size)
    return quantize_checkpoint(options, progress or _quiet)


def bench(
    bundle: Bundle, options: BenchOptions | None = None, progress: Progress | None = None, announce: Callable[[Address], None] | None = None
) -> list[BenchReport]:
    """Measures latency, load time and memory of every variant and component of a bundle.

    Args:
        options: device, variants, runs and threads; None takes this machine and every variant.
        announce: with ``device="web"``, called once with the address of the page (``url``) when it can be opened.

    Returns:
        One report per device; times are integers in nanoseconds.

    Raises:
        UsageError: a device, number of threads or size that cannot be.
        ToolchainError: the device or its tools fail.
    """
    from f2i_bench.bench import BenchOptions, run_bench

    return run_bench(bundle, options or BenchOptions(), progress or _quiet, announce or (lambda _: None))


@contextlib.contextmanager
def _engine(model: Bundle | Pipeline) -> Iterator[Pipeline]:
    if isinstance(model, Pipeline):
        yield model
        return
    with open_engine(model) as engine:
        yield engine


def _need_model_packages(purpose: str) -> None:
    for package in ("torch", "diffusers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, purpose, "model")


def _quiet(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody looks at."""
