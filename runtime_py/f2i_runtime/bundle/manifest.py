"""``manifest.json``: what a bundle holds, as typed records. The runtime trusts this file, never file names.

Unknown keys, unknown schema versions, absolute paths and paths that leave the bundle are refused when the manifest is read.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from f2i_runtime.bundle.graph_record import GraphRecord
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.errors import BundleError, UsageError
from f2i_runtime.targets import CPU, EVERYTHING, FLOAT, Selection, Variant, kind_of, opened_as, stored_as, target_of, targets

SCHEMA = 2
SOURCE_SUFFIX = ".source.pt2"
"""The suffix of the program that an artifact was converted from. It is kept for diagnosis and never shipped."""
CHUNKS = ".chunks"
"""Suffix of an artifact that is a folder of parts: they run in the order of their names, each on the component's inputs and what came before it."""
STATIC = ("w8a8", "w8a8-mixed", "w8a16")
"""Precisions whose activations are quantized: end to end their noise hides a wrong scale, op by op nothing does."""
PRECISIONS = ("fp32", "fp16", "w8", "w8a8", "w8a8-mixed", "w8a16", "p8", "p6", "p4")

Precision = Literal["fp32", "fp16", "w8", "w8a8", "w8a8-mixed", "w8a16", "p8", "p6", "p4"]


ColorFix = Literal["none", "adain"]
"""What gives an upscaled photo its colours back; see :mod:`f2i_runtime.photo.color`."""


def _confined(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or ":" in path or pure.is_absolute() or ".." in pure.parts or pure.as_posix() != path:
        raise ValueError(f"path {path!r} must be relative, with forward slashes and inside the bundle")
    return path


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise ValueError(f"name {name!r} must be lower-case letters, digits and underscores")
    return name


BundlePath = Annotated[str, AfterValidator(_confined)]
Name = Annotated[str, AfterValidator(_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of all records: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(Record):
    """One file of the bundle."""

    path: BundlePath
    bytes: int = Field(ge=0)
    sha256: Sha256


class TensorSpec(Record):
    """A named tensor of the dataflow. Layouts: NCHW images and latents, NTC tokens, NC vectors."""

    shape: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...] = Field(min_length=1, max_length=6)
    dtype: Literal["float32"] = "float32"
    layout: Literal["NCHW", "NTC", "NC"]
    range: tuple[float, float] | None = None
    """Nominal values, where they are bounded: RGB in [0, 1]."""


class OverlapRecord(Record):
    """How an overlap was chosen by measuring; see :mod:`f2i_runtime.tiling.overlap`. Decibels are PSNR of values in [0, 1], null where there is no error."""

    overlap: int = Field(ge=0)
    receptive_field: int = Field(ge=0)
    """Distance from a tile's edge, in low-resolution pixels, at which the edge is no longer felt."""
    floor_db: float | None
    """A tile's middle against the same pixels in another tile: what no overlap mends."""
    band_db: float | None
    """The band where tiles meet, at this overlap."""
    seam_ratio: float = Field(ge=0)
    pairs: int = Field(ge=1)


class TileSpec(Record):
    """How a photo is cut. Sizes in low-resolution pixels."""

    size: int = Field(ge=1, le=8192)
    scale: int = Field(ge=1, le=8)
    overlap: int = Field(ge=0)
    window: Literal["hann", "linear"] = "hann"
    multiple: int = Field(ge=1)
    measured: OverlapRecord | None = None
    """Where the overlap was chosen by measuring."""

    @model_validator(mode="after")
    def _fits(self) -> TileSpec:
        if self.overlap * 2 >= self.size:
            raise ValueError(f"overlap {self.overlap} must be less than half the tile's {self.size} pixels")
        if self.size % self.multiple:
            raise ValueError(f"tile {self.size} is not a multiple of {self.multiple}")
        return self


class Call(Record):
    """One line of the dataflow: run ``component`` with its inputs bound to named tensors; its output becomes ``result``."""

    component: Name
    inputs: dict[Name, Name]
    result: Name


class RewriteRecord(Record):
    """One rewrite applied before lowering: places changed, and relative L2 to the original on real tiles of the module with all that were proved with it."""

    name: Name
    count: int = Field(ge=1)
    relative_l2: float = Field(ge=0)


class Component(Record):
    """A graph: its inputs in calling order, its output, and the full-precision program everything is compared with."""

    inputs: dict[Name, TensorSpec]
    output: Name
    output_spec: TensorSpec
    parameters: int = Field(ge=0)
    reference: FileRecord
    simulated: dict[Precision, FileRecord] = {}
    """Precision → the QDQ program that every target's artifact of that precision was lowered from."""


class Fallback(Record):
    """An op that stays outside the delegate, with the reason its partitioner gave."""

    op: str
    reason: str


class Delegation(Record):
    """Figures of the lowered graph; null where a target has no delegate or the figure needs the device."""

    ops: int = Field(ge=0)
    delegated_share: float | None = Field(default=None, ge=0, le=1)
    partitions: int | None = Field(default=None, ge=0)
    fallbacks: tuple[Fallback, ...] = ()
    npu: NpuRecord | None = None  # of an artifact that is compiled for a chip's NPU
    graph: GraphRecord | None = None  # what the lowered program asks of an accelerator; older bundles do not say


class Parity(Record):
    """Error of a component's output against the full-precision reference, measured when it was exported."""

    engine: str
    tiles: int = Field(ge=1)
    sqnr_db: float | None
    relative_l2: float
    max_abs: float
    cosine: float | None


class Stage(Record):
    """Seconds and peak resident memory of one stage of an export (on Linux of the stage alone, elsewhere of its process so far)."""

    name: str
    seconds: float = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)


class Artifact(Record):
    """One component lowered to one variant: a target at a precision for an accelerator."""

    component: Name
    target: Name
    precision: Precision
    accelerator: Name = CPU
    path: BundlePath
    files: tuple[FileRecord, ...] = Field(min_length=1)
    options: dict[str, str] = {}
    needs: str = ""
    """The oldest system that it runs on, such as ``iOS 18 (macOS 15)``; empty where it comes with the app's own runtime library, or was not recorded."""
    rewrites: tuple[RewriteRecord, ...] = ()
    delegation: Delegation
    parity: Parity | None = None
    """Null where this machine has no engine for it (ExecuTorch with a device's own delegate)."""
    stages: tuple[Stage, ...] = ()
    tool_versions: dict[str, str]

    @model_validator(mode="after")
    def _hashed(self) -> Artifact:
        if not any(record.path == self.path or record.path.startswith(f"{self.path}/") for record in self.files):
            raise ValueError(f"artifact {self.path}: its path is not among its hashed files")
        return self

    @property
    def variant(self) -> Variant:
        """What the artifact is an artifact of."""
        return Variant(self.target, self.precision, self.accelerator)

    @property
    def bytes(self) -> int:
        """Size of what a phone ships."""
        return sum(f.bytes for f in self.files if not f.path.endswith(SOURCE_SUFFIX))


class Golden(Record):
    """Real inputs and reference outputs of every component, for a native app's own unit tests: tensor name → .npy (float32)."""

    name: Name
    source: str
    tensors: dict[Name, FileRecord]


class Gates(Record):
    """Limits that ``f2i validate`` holds a bundle to. Decibels; see ARCHITECTURE.md for each figure's definition."""

    component_sqnr_db: dict[Precision, float] = {"fp32": 90.0, "fp16": 45.0, "w8": 25.0, "w8a8": 25.0, "w8a8-mixed": 25.0, "w8a16": 25.0}
    photo_psnr_db: dict[Precision, float] = {"fp32": 80.0, "fp16": 55.0, "w8": 38.0, "w8a8": 38.0, "w8a8-mixed": 38.0, "w8a16": 38.0}
    psnr_y_drop_db: dict[Precision, float] = {"fp32": 0.05, "fp16": 0.05, "w8": 0.2, "w8a8": 0.2, "w8a8-mixed": 0.2, "w8a16": 0.2}
    token_cosine: dict[Precision, float] = {"w8": 0.99, "w8a8": 0.99, "w8a8-mixed": 0.99, "w8a16": 0.99}
    """Mean over tokens of the feature encoder's output."""
    ssim_y_drop: dict[Precision, float] = {"w8": 0.005, "w8a8": 0.005, "w8a8-mixed": 0.005, "w8a16": 0.005}
    simulated_sqnr_gap_db: dict[Name, float] = Field(
        default_factory=lambda: {name: t.simulated_sqnr_gap_db for name, t in targets().items()}
    )
    """Target → between its engine's SQNR and that of the QDQ program its artifact was lowered from. Off the CPU ``TARGET_ACCELERATOR``, without a chip."""
    layer_rel_l2: float = 1e-2
    """The largest relative L2 error of a quantized layer of an artifact when it is given the input of the QDQ program's layer."""
    engines_psnr_db: float | None = 45.0
    """Between the photos of two engines of the same quantized precision; null for random weights, see :func:`default_gates`."""
    seam_ratio: float = 1.2
    forced_rel_l2: float = 1e-2
    """Static int8, op by op: each value is compared with the reference's and then replaced by it."""
    own_weights_rel_l2: float = 1e-3
    """Compressed Core ML weights: the package beside torch with the package's own decompressed weights."""
    tiling_psnr_db: float | None = 50.0
    """Null for random weights, whose output is noise that no tiling can repeat."""

    def sqnr_gap_db(self, variant: Variant) -> float:
        """Returns how far the SQNR of an int8 artifact may be from its QDQ program's: the bundle's own gate, else the target's on that accelerator."""
        kind = kind_of(variant.accelerator)
        own = self.simulated_sqnr_gap_db.get(variant.target if kind == CPU else f"{variant.target}_{kind}")
        return target_of(variant).simulated_sqnr_gap_db if own is None else own


def parse_color_fix(text: str | None) -> ColorFix | None:
    """A colour fix as an option gives it. Raises UsageError."""
    if text is not None and text not in get_args(ColorFix):
        raise UsageError(f"--color-fix {text!r} is unknown; expected {' or '.join(get_args(ColorFix))}")
    return cast("ColorFix | None", text)


RANDOM_GAP_DB = 3.0
"""The gap to the QDQ program on one tile, which is all that a simulated chip is given, with random weights (measured: 1.3 on the tiny UNet in w8a8)."""


def default_gates(trained: bool) -> Gates:
    """Returns the gates of a new bundle. Random weights make no pictures, so the figures of pictures are measured and not judged.

    Their int8 rounding grows from layer to layer until two correct engines differ as much as either does from floats. What is judged is that a component
    computes what it should: a float one the reference, an int8 one its QDQ program, as a whole and layer by layer.
    """
    if trained:
        return Gates()
    gaps = {f"{name}_{kind}": RANDOM_GAP_DB for name, target in targets().items() for kind in target.on_chip}
    return Gates(
        simulated_sqnr_gap_db=Gates().simulated_sqnr_gap_db | gaps,
        component_sqnr_db={p: limit for p, limit in Gates().component_sqnr_db.items() if p in FLOAT},
        photo_psnr_db={"fp32": Gates().photo_psnr_db["fp32"]},
        psnr_y_drop_db={},
        ssim_y_drop={},
        token_cosine={},
        engines_psnr_db=None,
        tiling_psnr_db=None,
    )


class ModelRecord(Record):
    """Where the weights came from."""

    name: str
    checkpoint_sha256: Sha256
    config: dict[str, Any]
    recipe: dict[str, Any] | None = None
    """Precision → the quantization recipe in full with its hash; null where all precisions are float."""
    calibration: dict[str, Any] | None = None
    """Precision → photos with their hashes, tiles, seed and observer."""

    @property
    def trained(self) -> bool:
        """Whether the weights are more than random numbers; a bundle that does not say so is taken for one that is."""
        return bool(self.config.get("trained", True))


class Manifest(Record):
    """The whole bundle."""

    schema_version: Literal[1, 2] = Field(default=2, alias="schema")
    """In schema 1 artifacts had no accelerator: theirs is the CPU."""
    name: str
    created_by: str
    model: ModelRecord
    tile: TileSpec
    components: dict[Name, Component]
    dataflow: tuple[Call, ...] = Field(min_length=1)
    constants: dict[Name, FileRecord] = {}
    noise: bool = False
    color_fix: ColorFix = "none"
    """What the model wants done with its output's colours; an app applies it to the whole photo."""
    artifacts: tuple[Artifact, ...]
    reference_stages: tuple[Stage, ...] = ()
    """The stages of capturing the full-precision programs and golden vectors. An artifact has stages of its own."""
    golden: tuple[Golden, ...] = ()
    gates: Gates = Field(default_factory=Gates)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        known = {"lr": self.input_spec(), **dict.fromkeys(self.constants)}
        if self.noise:
            known["noise"] = None
        for call in self.dataflow:
            component = self.components.get(call.component)
            if component is None:
                raise ValueError(f"dataflow calls unknown component {call.component!r}")
            if set(call.inputs) != set(component.inputs):
                raise ValueError(f"dataflow binds {sorted(call.inputs)} of {call.component}, which takes {sorted(component.inputs)}")
            for tensor in call.inputs.values():
                if tensor not in known:
                    raise ValueError(f"dataflow reads tensor {tensor!r} before anything makes it")
            known[call.result] = component.output_spec
        if self.dataflow[-1].result != "sr":
            raise ValueError(f"the last call makes {self.dataflow[-1].result!r}, expected 'sr'")
        for artifact in self.artifacts:
            if artifact.component not in self.components:
                raise ValueError(f"artifact {artifact.path} is of unknown component {artifact.component!r}")
        seen = [(a.component, a.variant) for a in self.artifacts]
        if len(set(seen)) != len(seen):
            raise ValueError("two artifacts have the same component, target, precision and accelerator")
        return self

    def device_limit_db(self, artifact: Artifact) -> float | None:
        """SQNR that an artifact must reach on a device: its precision's gate, else 6 dB below (twice the error of) what it had when it was exported."""
        if (gate := self.gates.component_sqnr_db.get(artifact.precision)) is not None:
            return gate
        return None if artifact.parity is None or artifact.parity.sqnr_db is None else artifact.parity.sqnr_db - 6

    def input_spec(self) -> TensorSpec:
        """The low-resolution tile."""
        return TensorSpec(shape=(1, 3, self.tile.size, self.tile.size), layout="NCHW", range=(0.0, 1.0))

    def variants(self, only: Selection = EVERYTHING) -> list[Variant]:
        """Returns the complete variants that ``only`` takes, in the manifest's order. An accelerator that opens the CPU's artifacts must be named."""
        called = {call.component for call in self.dataflow}
        held = dict.fromkeys(a.variant for a in self.artifacts)
        whole = [variant for variant in held if called <= {a.component for a in self.artifacts if a.variant == variant}]
        every = [other for v in whole for other in (v, *(opened_as(v) if only.accelerator is not None else ()))]
        return [variant for variant in every if only.takes(variant)]

    def listed(self) -> str:
        """Returns the complete variants for a message, separated by commas."""
        return ", ".join(map(str, self.variants())) or "no complete variant"

    def artifact(self, component: str, variant: Variant) -> Artifact:
        """Returns the artifact of that component and variant. Raises BundleError with what there is."""
        for artifact in self.artifacts:
            if (artifact.component, artifact.variant) == (component, stored_as(variant)):
                return artifact
        raise BundleError(f"{self.name}: it holds no {variant} of {component}; it holds {self.listed()}")

    def artifacts_of(self, variant: Variant) -> list[Artifact]:
        """Returns every component's artifact of a variant, in the order of the manifest."""
        return [artifact for artifact in self.artifacts if artifact.variant == stored_as(variant)]

    def files(self) -> list[FileRecord]:
        """Every file the manifest vouches for."""
        records = [c.reference for c in self.components.values()] + list(self.constants.values())
        records += [record for c in self.components.values() for record in c.simulated.values()]
        records += [f for a in self.artifacts for f in a.files] + [f for g in self.golden for f in g.tensors.values()]
        return records


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse and check a manifest. Raises BundleError with one line that names ``source`` and the first offending key."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        raise BundleError(
            f"{source}: {where + ': ' if where else ''}{first['msg']}{more}; this tool reads bundles of schema {SCHEMA}"
        ) from e
