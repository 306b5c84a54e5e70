"""The program of a package as a plain list of operations, decoded straight from the protobuf.

coremltools' own loader rebuilds every operation through its builder, with type inference and value inference: seconds for a UNet. Running a
program needs neither, because the file declares the type of every value; so this decoder reads types and names and checks what can be
wrong: values used before or without being computed, names defined twice, shapes that no memory holds, literals whose size is not their
type's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.blob import unpack
from f2i_runtime.mil.format.dtypes import BY_NAME, BY_NUMBER, DType
from f2i_runtime.mil.format.package import Package

MAX_ELEMENTS = 1 << 30
MAX_RANK = 16
# Opset names in the file; coremltools' ``_OPSET``. The number is the iOS version they came with.
OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18, "CoreML9": 26}
# Parameters that take a tuple of values even when the file lists one.
TUPLE_PARAMETERS = frozenset({"values", "loop_vars", "ref_tensors", "begins", "ends", "end_masks", "elem_shape"})


@dataclass(frozen=True)
class ValueType:
    """Declared type of a value. ``shape`` has None for a dimension known only at run time and is None when the rank is unknown.

    ``kind`` is ``tensor``, ``state`` (of a tensor), ``list`` (of tensors of this type) or ``dictionary`` (of a classifier).
    """

    dtype: DType
    shape: tuple[int | None, ...] | None
    kind: str = "tensor"

    def __str__(self) -> str:
        shape = "*" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype.name}[{shape}]"


@dataclass(frozen=True)
class Constant:
    """A literal of the program: in the protobuf (``immediate``) or at ``offset`` of the weight file ``file``."""

    type: ValueType
    where: str
    immediate: Any = None
    file: str = ""
    offset: int = 0

    def load(self, package: Package) -> Any:
        """A numpy array (rank 0 for scalars), text, or a list of either; raises :class:`MilError` when bytes and type disagree."""
        if not self.file:
            return _immediate(self.immediate, self.type, self.where)
        shape = static_shape(self.type, self.where)
        return package.weights(self.file, self.where).read(self.offset, self.type.dtype, shape, self.where)


@dataclass(frozen=True)
class Output:
    """A value that an operation, block or function defines."""

    name: str
    type: ValueType


@dataclass
class Operation:
    """One operation. ``inputs`` maps a parameter to what feeds it: names of values, or literals."""

    type: str
    name: str
    where: str
    inputs: dict[str, tuple[str | Constant, ...]]
    outputs: tuple[Output, ...]
    blocks: tuple[Block, ...] = ()


@dataclass
class Block:
    """A straight list of operations; ``inputs`` are a loop's variables."""

    inputs: tuple[Output, ...]
    operations: list[Operation]
    outputs: tuple[str, ...]

    def walk(self) -> Iterator[Operation]:
        """Every operation, those of nested blocks after the operation that holds them."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.walk()


@dataclass
class Function:
    """A function: ``opset`` is the iOS version of its operation set."""

    name: str
    opset: int
    inputs: tuple[Output, ...]
    body: Block
    types: dict[str, ValueType] = field(default_factory=dict)


def function_names(package: Package) -> tuple[str, ...]:
    """Names of the package's functions, the default one first."""
    names = sorted(package.spec.mlProgram.functions)
    default = package.spec.description.defaultFunctionName or "main"
    return tuple(sorted(names, key=lambda name: (name != default, name)))


def decode(package: Package, function: str | None = None) -> Function:
    """The function ``function`` (default: the package's default function), checked; raises :class:`MilError` for what is wrong."""
    program = package.spec.mlProgram
    if program.version != 1:
        raise MilError(f"got program version {program.version}, expected 1")
    names = function_names(package)
    name = function or (names[0] if names else "main")
    if name not in program.functions:
        raise MilError(f"the package has no function {name!r}; it has {', '.join(names) or 'none'}")
    message = program.functions[name]
    if message.opset not in OPSETS:
        raise MilError(f"{name}: opset {message.opset!r} is unknown; known: {', '.join(OPSETS)}")
    if message.opset not in message.block_specializations:
        raise MilError(f"{name}: there is no block for its opset {message.opset}")
    inputs = tuple(_outputs(message.inputs, f"{name} inputs"))
    decoder = _Decoder(name)
    for value in inputs:
        decoder.define(value, f"{name} inputs")
    body = decoder.block(message.block_specializations[message.opset], name)
    return Function(name, OPSETS[message.opset], inputs, body, decoder.types)


class _Decoder:
    """Keeps the values in scope while blocks are read in order."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.types: dict[str, ValueType] = {}
        self.scope: set[str] = set()

    def define(self, value: Output, where: str) -> None:
        if value.name in self.scope:
            raise MilError(f"{where}: the value {value.name!r} is defined twice")
        self.scope.add(value.name)
        self.types[value.name] = value.type

    def block(self, message: Any, where: str) -> Block:
        outer = set(self.scope)
        inputs = tuple(_outputs(message.inputs, where))
        for value in inputs:
            self.define(value, where)
        operations = []
        for position, item in enumerate(message.operations):
            operations.append(self.operation(item, message, position))
        for name in message.outputs:
            if name not in self.scope:
                raise MilError(f"{where}: the output {name!r} is never computed")
        self.scope = outer
        return Block(inputs, operations, tuple(message.outputs))

    def operation(self, message: Any, block: Any, position: int) -> Operation:
        kind = message.type
        name = _operation_name(message)
        where = f"{self.function}/{position} {kind} {name!r}"
        inputs: dict[str, tuple[str | Constant, ...]] = {}
        for key, argument in message.inputs.items():
            operands: list[str | Constant] = []
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    if binding.name not in self.scope:
                        raise MilError(_unknown_value(binding.name, where, key, block, position))
                    operands.append(binding.name)
                else:
                    operands.append(_constant(binding.value, f"{where} {key}"))
            inputs[key] = tuple(operands)
        for key, value in message.attributes.items():
            if key != "name":
                inputs[key] = (_constant(value, f"{where} {key}"),)
        blocks = tuple(self.block(item, where) for item in message.blocks)
        outputs = tuple(_outputs(message.outputs, where))
        for output in outputs:
            self.define(output, where)
        return Operation(kind, name, where, inputs, outputs, blocks)


def _operation_name(message: Any) -> str:
    if "name" in message.attributes:
        strings = message.attributes["name"].immediateValue.tensor.strings.values
        if strings:
            return str(strings[0])
    return message.outputs[0].name if message.outputs else ""


def _unknown_value(name: str, where: str, key: str, block: Any, position: int) -> str:
    later = any(output.name == name for item in block.operations[position:] for output in item.outputs)
    why = "which is computed only later (a cycle, or operations out of order)" if later else "which nothing computes"
    return f"{where}: input {key} reads {name!r}, {why}"


def _outputs(messages: Any, where: str) -> Iterator[Output]:
    for message in messages:
        yield Output(message.name, value_type(message.type, f"{where} -> {message.name}"))


def value_type(message: Any, where: str) -> ValueType:
    """The declared type in the protobuf ``ValueType``; raises :class:`MilError` for an unknown element type or an absurd shape."""
    kind = message.WhichOneof("type")
    if kind == "stateType":
        inner = value_type(message.stateType.wrappedType, where)
        return ValueType(inner.dtype, inner.shape, "state")
    if kind == "listType":
        inner = value_type(message.listType.type, where)
        return ValueType(inner.dtype, inner.shape, "list")
    if kind == "dictionaryType":
        return ValueType(BY_NAME["fp32"], None, "dictionary")
    if kind != "tensorType":
        raise MilError(f"{where}: got a value of type {kind}, expected a tensor, list, state or dictionary")
    tensor = message.tensorType
    dtype = BY_NUMBER.get(tensor.dataType)
    if dtype is None:
        raise MilError(f"{where}: element type {tensor.dataType} is unknown")
    if not tensor.dimensions:
        return ValueType(dtype, () if tensor.rank >= 0 else None)
    shape: list[int | None] = []
    total = 1
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            size = dimension.constant.size
            total *= max(size, 1)
            shape.append(size)
        elif dimension.unknown.variadic:
            return ValueType(dtype, None)
        else:
            shape.append(None)
    if total > MAX_ELEMENTS or len(shape) > MAX_RANK:
        raise MilError(f"{where}: shape {shape} is too large; at most {MAX_ELEMENTS} elements and {MAX_RANK} dimensions are accepted")
    return ValueType(dtype, tuple(shape))


def static_shape(declared: ValueType, where: str) -> tuple[int, ...]:
    """The shape of a literal or state, which cannot depend on the inputs."""
    if declared.shape is None or any(size is None for size in declared.shape):
        raise MilError(f"{where}: got the type {declared}, expected a fixed shape")
    return tuple(size for size in declared.shape if size is not None)


def _constant(message: Any, where: str) -> Constant:
    declared = value_type(message.type, where)
    kind = message.WhichOneof("value")
    if kind == "blobFileValue":
        return Constant(declared, where, file=message.blobFileValue.fileName, offset=message.blobFileValue.offset)
    if kind == "immediateValue":
        return Constant(declared, where, immediate=message.immediateValue)
    raise MilError(f"{where}: the literal has no value")


_NUMERIC_FIELDS = ("floats", "ints", "bools", "longInts", "doubles")


def _immediate(message: Any, declared: ValueType, where: str) -> Any:
    kind = message.WhichOneof("value")
    if kind == "list":
        return [_immediate(item.immediateValue, value_type(item.type, where), where) for item in message.list.values]
    if kind != "tensor":
        raise MilError(f"{where}: got a literal of kind {kind}, expected a tensor or list")
    shape = static_shape(declared, where)
    count = 1
    for size in shape:
        count *= size
    field_name = message.tensor.WhichOneof("value")
    if declared.dtype.name == "string":
        texts = list(message.tensor.strings.values)
        if len(texts) != count:
            raise MilError(f"{where}: got {len(texts)} strings, {declared} needs {count}")
        return texts if shape else texts[0]
    if field_name == "bytes":
        raw = np.frombuffer(message.tensor.bytes.values, np.uint8)
        if raw.size != (count * declared.dtype.bits + 7) // 8:
            raise MilError(f"{where}: got {raw.size} bytes, {declared} needs {(count * declared.dtype.bits + 7) // 8}")
        if declared.dtype.packed:
            return unpack(raw, declared.dtype, count).reshape(shape)
        return raw.view(np.dtype(declared.dtype.numpy).newbyteorder("<")).reshape(shape)
    if field_name not in _NUMERIC_FIELDS:
        raise MilError(f"{where}: got a literal of {field_name}, expected {declared}")
    array = np.array(getattr(message.tensor, field_name).values)
    if array.size != count:
        raise MilError(f"{where}: got {array.size} numbers, {declared} needs {count}")
    return array.astype(declared.dtype.numpy).reshape(shape)
