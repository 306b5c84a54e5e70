"""Gives coremltools' own ``MLModel.predict`` and ``make_state`` to systems without Core ML.

    from f2i.coreml_on_linux import install
    install()
    model = coremltools.models.MLModel("model.mlpackage")      # now predicts, with the evaluator

coremltools talks to Core ML through one class, ``_MLModelProxy``; :func:`install` puts :class:`Proxy` in its place. Where Core ML exists
(macOS) it leaves everything alone unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.errors import MilError, MissingPackageError
from f2i_runtime.mil.execute.evaluator import Evaluator, State

# FeatureTypes.proto: ImageFeatureType.ColorSpace and ArrayFeatureType.ArrayDataType
_GRAY, _BGR = (10, 40), 30
_ARRAY_TYPES = {65552: np.float16, 65568: np.float32, 65600: np.float64, 131104: np.int32, 131080: np.int8}
SPECIFICATION_VERSION = 10
_MACOS = (15, 3)


class StateProxy:
    """What ``MLModel.make_state`` wraps: the tensors of a stateful model, kept between calls."""

    def __init__(self, values: State) -> None:
        self.values = values

    def read_state(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of the state ``name``."""
        array: np.ndarray[Any, Any] = self.values[name].numpy().copy()
        return array

    def write_state(self, name: str, value: np.ndarray[Any, Any]) -> None:
        """Replaces the state ``name`` by ``value``, of the same shape."""
        import torch

        before = self.values[name]
        self.values[name] = torch.from_numpy(np.array(value)).to(before.dtype).reshape(before.shape)


class Proxy:
    """The interface of coremltools' ``_MLModelProxy``, served by the evaluator in mode ``declared``."""

    mode = "declared"

    @staticmethod
    def maximum_supported_specification_version() -> int:
        """The newest model specification that is accepted (iOS 26's)."""
        return SPECIFICATION_VERSION

    def __init__(self, path: str, compute_units: str = "ALL", function_name: str = "", hints: Any = None, asset: Any = None) -> None:
        """Loads the package; an error is a RuntimeError, which coremltools turns into its own warning."""
        from f2i_runtime.mil.format.package import Package

        try:
            with Package(Path(path)) as package:
                self._description = package.spec.description
            self._evaluator = Evaluator(Path(path), function=function_name or None, mode=self.mode)
        except Exception as error:
            raise RuntimeError(str(error)) from error
        for item in self._description.functions:
            if item.name == self._evaluator.function.name:
                self._description = item

    def newState(self) -> StateProxy:  # noqa: N802  # the name coremltools calls
        """Fresh states, all zero."""
        return StateProxy(self._evaluator.new_state())

    def predict(self, data: Mapping[str, Any], state: StateProxy | None = None) -> dict[str, Any]:
        """One prediction: arrays and images by input name, outputs in the types the model describes.

        Raises RuntimeError as Core ML does, with its sentence first and the evaluator's reason after it.
        """
        try:
            inputs = {name: self._input(name, value) for name, value in data.items()}
            outputs = self._evaluator(inputs, state=None if state is None else state.values)
        except MilError as error:
            raise RuntimeError(f"Unable to compute the prediction using ML Program: {error}") from error
        return self._describe(outputs)

    def batchPredict(self, batch: list[Mapping[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802  # the name coremltools calls
        """Several predictions, one after the other."""
        return [self.predict(data) for data in batch]

    def _input(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        if hasattr(value, "getbands"):
            return _image_to_array(value, self._feature(self._description.input, name).type.imageType)
        array = np.asarray(value)
        _check_flexible(self._feature(self._description.input, name).type.multiArrayType, array.shape, name)
        declared = self._evaluator.inputs.get(name)
        return array.reshape(()) if declared is not None and declared.shape == () and array.size == 1 else array

    @staticmethod
    def _feature(features: Any, name: str) -> Any:
        for item in features:
            if item.name == name:
                return item
        raise MilError(f"the model has no input {name!r}; it has {', '.join(item.name for item in features)}")

    def _describe(self, outputs: dict[str, Any]) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for item in self._description.output:
            if item.name not in outputs:
                continue
            value = outputs[item.name]
            kind = item.type.WhichOneof("Type")
            if kind == "imageType":
                described[item.name] = _array_to_image(value, item.type.imageType.colorSpace)
            elif kind == "multiArrayType":
                array = value if value.shape else value.reshape(1)
                described[item.name] = array.astype(_ARRAY_TYPES.get(item.type.multiArrayType.dataType, array.dtype), copy=False)
            else:
                described[item.name] = value
        return described


def _check_flexible(described: Any, shape: tuple[int, ...], name: str) -> None:
    """Core ML refuses a shape outside what the description enumerates or gives as ranges (upper bound -1: none)."""
    kind = described.WhichOneof("ShapeFlexibility")
    if kind == "enumeratedShapes":
        allowed = [tuple(item.shape) for item in described.enumeratedShapes.shapes]
        if shape not in allowed:
            raise MilError(f"input {name!r} has the shape {list(shape)}, the model allows {[list(item) for item in allowed]}")
    if kind == "shapeRange":
        ranges = [(item.lowerBound, item.upperBound) for item in described.shapeRange.sizeRanges]
        if len(ranges) == len(shape) and any(size < low or (size > high >= 0) for size, (low, high) in zip(shape, ranges, strict=True)):
            raise MilError(f"input {name!r} has the shape {list(shape)}, the model allows the ranges {ranges}")


def _image_to_array(image: Any, described: Any) -> np.ndarray[Any, Any]:
    """A PIL image as ``[1, C, H, W]`` float32 in 0…255, channels in the order the model describes."""
    if described.colorSpace in _GRAY:
        gray = image if image.mode == "F" else image.convert("L")
        return np.asarray(gray, np.float32)[None, None]
    pixels = np.asarray(image.convert("RGB"), np.float32)
    ordered = pixels[..., ::-1] if described.colorSpace == _BGR else pixels
    return np.ascontiguousarray(ordered.transpose(2, 0, 1)[None])


def _array_to_image(array: np.ndarray[Any, Any], color_space: int) -> Any:
    from PIL import Image

    pixels = array.reshape(array.shape[-3:])
    if color_space == _GRAY[1]:
        return Image.fromarray(pixels[0].astype(np.float32), "F")
    bytes_ = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    if color_space in _GRAY:
        return Image.fromarray(bytes_[0], "L")
    ordered = bytes_[::-1] if color_space == _BGR else bytes_
    return Image.fromarray(np.ascontiguousarray(ordered.transpose(1, 2, 0)), "RGB")


def install(*, replace_native: bool = False, proxy: type[Proxy] = Proxy) -> Callable[[], None]:
    """Routes ``MLModel.predict`` and ``make_state`` to the evaluator; returns a function that undoes it.

    Where Core ML itself is present nothing changes unless ``replace_native``. Raises :class:`MissingPackageError` without coremltools.
    """
    try:
        import coremltools.models.model as models
    except ImportError as error:
        raise MissingPackageError("coremltools", "MLModel.predict", "run-coreml") from error
    before = models._MLModelProxy, models._is_macos, models._macos_version
    if before[0] is not None and not replace_native:
        return lambda: None

    def undo() -> None:
        models._MLModelProxy, models._is_macos, models._macos_version = before

    models._MLModelProxy = proxy
    models._is_macos, models._macos_version = lambda: True, lambda: _MACOS  # make_state asks for macOS 15
    return undo
