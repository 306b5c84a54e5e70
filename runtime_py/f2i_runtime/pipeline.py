"""A bundle's dataflow on one engine: a low-resolution tile in, a super-resolved tile out; and whole photos, tile by tile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from f2i_runtime.bundle.manifest import ColorFix, OverlapRecord
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.engines.session import Session, open_session
from f2i_runtime.errors import BundleError, ToolchainError, UsageError
from f2i_runtime.memory import trim_heap
from f2i_runtime.photo.color import ColorSums
from f2i_runtime.photo.cutout import visible_rows
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.writer import Encoding, PhotoWriter
from f2i_runtime.targets import FLOAT, REFERENCE, Selection, Variant, target_of, targets
from f2i_runtime.tiling.blend import ReadRows, TilePlan, upscale_array, upscale_blocks


@dataclass
class Pipeline:
    """A variant with the sessions of all its components. A context manager."""

    bundle: Bundle
    variant: Variant
    sessions: dict[str, Session]
    constants: dict[str, np.ndarray]
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The variant's target."""
        return self.variant.target

    @property
    def precision(self) -> str:
        """The variant's precision."""
        return self.variant.precision

    @property
    def engine(self) -> str:
        """The name of what computes, for people and reports."""
        return next(iter(self.sessions.values())).engine

    def tile(self, lr: np.ndarray, position: tuple[int, int] = (0, 0)) -> np.ndarray:
        """lr float32 (1, 3, t, t) in [0, 1] → sr float32 (1, 3, 2t, 2t). ``position`` (y, x): where the tile lies, for models that take noise."""
        return self.tensors(lr, position)["sr"]

    def tensors(
        self, lr: np.ndarray, position: tuple[int, int] = (0, 0), given: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """All named tensors of one tile, the inputs among them. Those in ``given`` are taken as they are instead of being computed."""
        manifest = self.bundle.manifest
        tensors = {"lr": lr, **self.constants, **(given or {})}
        if manifest.noise:
            tensors["noise"] = self._noise(position)
        for call in manifest.dataflow:
            if given and call.result in given:
                continue
            inputs = {argument: tensors[tensor] for argument, tensor in call.inputs.items()}
            tensors[call.result] = self.run(call.component, inputs)
        return tensors

    def run(self, component: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Runs one component. Times it, and checks the shape of its output."""
        began = time.perf_counter()
        output = self.sessions[component].run(inputs)
        self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - began
        self.calls[component] = self.calls.get(component, 0) + 1
        expected = self.bundle.manifest.components[component].output_spec.shape
        if output.shape != expected:
            reason = f"it gave shape {output.shape}, the manifest says {expected}"
            raise ToolchainError(component=component, target=self.target, stage="run", reason=reason)
        return output

    def _noise(self, position: tuple[int, int]) -> np.ndarray:
        shape = next(c.inputs["latent"].shape for c in self.bundle.manifest.components.values() if "lr_latent" in c.inputs)
        return tile_noise(shape, position)

    def close(self) -> None:
        """Frees all sessions."""
        for session in self.sessions.values():
            session.close()
        trim_heap()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tile_noise(shape: tuple[int, ...], position: tuple[int, int]) -> np.ndarray:
    """Returns the noise that a tile at ``position`` (y, x) starts from, float32: the same for that position in every run."""
    return np.random.default_rng([0, *position]).standard_normal(shape, dtype=np.float32)


def open_pipeline(bundle: Bundle, variant: Variant, threads: int = 0) -> Pipeline:
    """Load every component of a variant; of the full-precision reference with :data:`f2i_runtime.targets.REFERENCE`, and with another precision of its
    target the QDQ programs that the artifacts of that precision were lowered from.

    Files are checked against the manifest's hashes first. Raises BundleError, MissingPackageError, ToolchainError.
    """
    manifest = bundle.manifest
    pipeline = Pipeline(bundle, variant, {}, {name: bundle.constant(name) for name in manifest.constants})
    with contextlib.ExitStack() as opened:
        opened.callback(pipeline.close)
        for name in dict.fromkeys(call.component for call in manifest.dataflow):
            component = manifest.components[name]
            is_reference = variant.target == REFERENCE.target
            path = _program(bundle, name, variant.precision) if is_reference else bundle.artifact_path(manifest.artifact(name, variant))
            shapes = {k: tuple(spec.shape) for k, spec in component.inputs.items()}
            pipeline.sessions[name] = open_session(variant, path, component=name, inputs=shapes, threads=threads)
        opened.pop_all()
    return pipeline


def _program(bundle: Bundle, name: str, precision: str) -> Path:
    component = bundle.manifest.components[name]
    record = component.reference if precision == REFERENCE.precision else component.simulated.get(precision)  # type: ignore[call-overload]
    if record is None:
        raise BundleError(f"{bundle.root}: it holds no QDQ program of {name} in {precision}; export it again with --precision {precision}")
    return bundle.check(record)


def choose_variant(bundle: Bundle, only: Selection) -> Variant:
    """Returns the variant that a photo is upscaled with: the fastest engine's of this machine, among those of the bundle that ``only`` takes.

    Engines that are installed come first, those that run natively here before those that a stand-in computes. Among these a float precision is taken before
    a quantized one, then the target with the lowest ``rank``, then what the bundle lists first. With the target of the reference, a precision other than
    ``fp32`` means the QDQ programs of that precision.

    Raises BundleError listing what there is, MissingPackageError where no engine of what was asked for is installed.
    """
    if only.target == REFERENCE.target:
        return _reference(bundle, only)
    matching = bundle.manifest.variants(only)
    if not matching:
        wanted = "/".join(part for part in (only.target or "any target", only.precision or "any precision", only.accelerator) if part)
        raise BundleError(f"{bundle.root}: no {wanted} in it; it holds {bundle.manifest.listed()}")

    def order(variant: Variant) -> tuple[bool, bool, bool, int]:
        known = targets().get(variant.target)  # a bundle may hold a target of a package that is not installed here
        if known is None:
            return (True, True, variant.precision not in FLOAT, 0)
        target = known.on(variant.accelerator)
        return (not target.engine.installed(), not target.native_here, variant.precision not in FLOAT, target.rank)

    return min(matching, key=order)


def why_chosen(variant: Variant) -> str:
    """Returns a line for people: what :func:`choose_variant` took and why."""
    target = target_of(variant)
    if not target.engine.installed():
        return f"{variant}: no engine for this bundle is installed"
    if not target.native_here:
        return f"{variant}: no engine that runs natively here is installed, so the {target.engine_label} computes"
    return f"{variant}: {target.label} is the fastest engine here that the bundle has an artifact for"


def _reference(bundle: Bundle, only: Selection) -> Variant:
    if only.accelerator not in (None, REFERENCE.accelerator):
        raise UsageError(f"the reference computes on the {REFERENCE.accelerator}, got accelerator {only.accelerator!r}")
    variant = Variant(REFERENCE.target, only.precision or REFERENCE.precision)
    simulated = sorted({p for component in bundle.manifest.components.values() for p in component.simulated})
    if variant != REFERENCE and variant.precision not in simulated:
        have = ", ".join((REFERENCE.precision, *simulated))
        raise UsageError(
            f"target {REFERENCE.target} runs the reference and the QDQ programs: {have} in this bundle, got {variant.precision!r}"
        )
    return variant


def photo_plan(bundle: Bundle, height: int, width: int, overlap: int | None = None) -> TilePlan:
    """Returns the tiles over a photo as the manifest asks, or with another overlap. Raises UsageError."""
    tile = bundle.manifest.tile
    return TilePlan(height, width, tile=tile.size, overlap=tile.overlap if overlap is None else overlap, scale=tile.scale, fade=tile.window)


@dataclass(frozen=True)
class PhotoOptions:
    """How photos are upscaled and written. None takes the photo's own bit depth, the bundle's overlap and colour fix.

    ``overlap`` ``auto`` is measured anew for every photo: for several, make it a number first with :func:`measured_overlap`.
    """

    quality: int = 95
    bit_depth: int | None = None
    overlap: int | Literal["auto"] | None = None
    color_fix: ColorFix | None = None


def measured_overlap(pipeline: Pipeline) -> OverlapRecord:
    """Returns the bundle's measured overlap, or one measured now on the sample photos with this engine. Raises UsageError, ToolchainError."""
    from f2i_runtime.tiling.overlap import choose_overlap

    manifest = pipeline.bundle.manifest
    return manifest.tile.measured or choose_overlap(pipeline.tile, manifest.tile, manifest.gates)


def upscale_photo(
    pipeline: Pipeline,
    source: Path,
    destination: Path,
    options: PhotoOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Upscale one photo to ``destination``, in memory that depends on the photo's width only. Returns warnings for the user.

    The output appears complete or not at all. Raises PhotoError, UsageError, ToolchainError.
    """
    options = options or PhotoOptions()
    manifest = pipeline.bundle.manifest
    fix = options.color_fix or manifest.color_fix
    with PhotoReader(source) as reader:
        scale = manifest.tile.scale
        overlap = measured_overlap(pipeline).overlap if options.overlap == "auto" else options.overlap
        plan = photo_plan(pipeline.bundle, reader.height, reader.width, overlap)
        width, height = reader.width * scale, reader.height * scale
        read_rows: ReadRows = visible_rows(reader)
        colors = None
        if fix == "adain":
            colors = ColorSums(reader.decode, grey=reader.is_grey)
            read_rows = colors.reading(read_rows)
        encoding = Encoding(options.quality, options.bit_depth, recolor=colors is not None)
        with PhotoWriter(destination, width, height, like=reader, encoding=encoding) as writer:
            # One tile at a time, in a thread of its own: the next rows are read and the last tile is blended and written meanwhile.
            tiles = upscale_blocks(read_rows, plan, pipeline.tile, decode=reader.decode, progress=progress, threads=1)
            with contextlib.closing(tiles) as blocks:
                for y, x, block in blocks:
                    writer.write_block(y, x, block)
                    if colors is not None:
                        colors.wrote(block)
            if colors is not None:
                writer.recolor(*colors.affine())
        return [*reader.warnings, *writer.warnings]


def upscale_image(pipeline: Pipeline, image: np.ndarray, options: PhotoOptions | None = None) -> np.ndarray:
    """Upscale an image in memory, tile by tile, as :func:`upscale_photo` does a file; ``quality`` and ``bit_depth`` do not apply.

    Args:
        image: RGB (H, W, 3), of any size: float32 in [0, 1], or uint8.

    Returns:
        (H * scale, W * scale, 3) of the same type: float32 clipped to [0, 1], or uint8, rounded half up.

    Raises:
        UsageError: another dtype or shape, no pixels, or values that are not in [0, 1].
        ToolchainError: the engine failed.
    """
    options = options or PhotoOptions()
    check_image(image)
    eight_bit = image.dtype == np.uint8
    pixels = np.minimum(image * np.float32(1 / 255), np.float32(1)) if eight_bit else image
    overlap = measured_overlap(pipeline).overlap if options.overlap == "auto" else options.overlap
    height, width, _ = image.shape
    result = upscale_array(pixels, photo_plan(pipeline.bundle, height, width, overlap), pipeline.tile)
    if (options.color_fix or pipeline.bundle.manifest.color_fix) == "adain":
        sums = ColorSums(lambda rows: rows, grey=False)
        sums.reading(lambda y0, y1: pixels[y0:y1])(0, len(pixels))
        sums.wrote(result)
        gain, offset = sums.affine()
        result = (np.clip(result, 0.0, 1.0) * gain + offset).astype(np.float32)
    if not np.isfinite(result).all():
        reason = "the result holds NaN or infinity: the model is broken; run f2i validate"
        raise ToolchainError(component="the whole model", target=pipeline.target, stage="run", reason=reason)
    result = np.clip(result, np.float32(0), np.float32(1))
    return (result * np.float32(255) + np.float32(0.5)).astype(np.uint8) if eight_bit else result


def check_image(image: np.ndarray) -> None:
    """Raises UsageError unless ``image`` is RGB (H, W, 3) with pixels in it, uint8 or float32 in [0, 1]."""
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.float32):
        got = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"the image has {got}; expected a numpy array of uint8, or float32 in [0, 1]")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UsageError(f"the image has the shape {image.shape}; expected RGB (height, width, 3) with at least one pixel")
    if image.dtype == np.float32 and not (image.min() >= 0.0 and image.max() <= 1.0):
        raise UsageError(f"the image has values from {image.min():g} to {image.max():g}; expected [0, 1]: clip it, or divide by 255")
