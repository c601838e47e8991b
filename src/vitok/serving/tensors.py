"""Tensors of the Open Inference Protocol, version 2: their data types, and how they stand in JSON and in bytes.

The protocol and its binary extension are described at https://github.com/kserve/open-inference-protocol and in
NVIDIA's "Binary Tensor Data Extension". In the extension a tensor is its elements one after another, row by row,
little-endian; one of BYTES has the length of each element, four bytes, before it.
"""

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from vitok.errors import InvalidInput

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Name in the protocol to numpy's type; an element of BYTES is a `bytes`."""

_NAMES = {kind: name for name, kind in DATATYPES.items()}
_LENGTH = struct.Struct("<I")
_MOST_AXES = 32
_LONGEST = 1 << 40


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives under one name.

    Args:
        name: Name of the tensor.
        datatype: One of `DATATYPES`, such as `"FP32"`.
        shape: Length along each axis; -1 where any will do. A first axis of -1 is that of the rows.

    Raises:
        InvalidInput: If the data type is unknown, or a length is below -1.

    Example:
        >>> rows = TensorSpec("input", "FP64", (-1, 30))
        >>> rows.fits((8, 30)), rows.fits((30,)), rows.batched
        (True, False, True)
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise InvalidInput("datatype", self.datatype, f"be one of {', '.join(DATATYPES)}")
        if any(length < -1 for length in self.shape):
            raise InvalidInput("shape", self.shape, "have lengths of 0 or more, or -1 for any")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type in numpy."""
        return DATATYPES[self.datatype]

    @property
    def batched(self) -> bool:
        """Whether it may have any number of rows."""
        return bool(self.shape) and self.shape[0] == -1

    def fits(self, shape: Sequence[int]) -> bool:
        """Says whether a tensor of this shape may take its place."""
        return len(shape) == len(self.shape) and all(
            wanted in (-1, got) for wanted, got in zip(self.shape, shape, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns it as the protocol's metadata have it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def datatype_of(kind: np.dtype[Any]) -> str:
    """Returns the protocol's name of a numpy type.

    Raises:
        InvalidInput: If the protocol has none.

    Example:
        >>> datatype_of(np.dtype(np.float32))
        'FP32'
    """
    if kind.kind in "SUO":
        return "BYTES"
    try:
        return _NAMES[kind.newbyteorder("<")]
    except KeyError:
        raise InvalidInput("dtype", str(kind), f"be one of {', '.join(DATATYPES)}") from None


def from_values(where: str, datatype: str, shape: Sequence[int], values: Any) -> np.ndarray:
    """Makes a tensor of what stood in JSON.

    Args:
        where: What an error calls it, such as `"inputs[0]"`.
        datatype: As the request has it.
        shape: As the request has it.
        values: Numbers, truth values or texts, flat or nested. A null in a tensor of floating point is NaN.

    Raises:
        InvalidInput: If type, shape and values do not fit together.

    Example:
        >>> from_values("inputs[0]", "FP32", [1, 3], [1, None, 2.5])
        array([[1. , nan, 2.5]], dtype=float32)
        >>> from_values("inputs[0]", "INT8", [1], [300])
        Traceback (most recent call last):
        vitok.errors.InvalidInput: inputs[0].data: got 300, must fit INT8
    """
    kind = _known(where, datatype)
    n = _size(where, shape)
    if not isinstance(values, list):
        values = [] if values is None else [values]
    field = f"{where}.data"
    if datatype != "BYTES" and not {str, dict}.isdisjoint(_kinds(values)):
        # Also since numpy would give every element the room of the longest text.
        raise InvalidInput(field, _short(values), "be numbers" if kind.kind != "b" else "be truth values")
    try:
        found = np.array(values) if datatype != "BYTES" else _texts(values)
    except (ValueError, OverflowError):
        raise InvalidInput(field, _short(values), "be rows of one length") from None
    if not found.size:
        found = np.empty(0, kind)
    elif kind.kind == "f":
        found = _floats(field, found)
    elif kind.kind == "b" and found.dtype != np.bool_:
        raise InvalidInput(field, _short(values), "be truth values")
    elif kind.kind in "iu":
        if found.dtype.kind == "f":
            # numpy makes floats of whole numbers on both sides of 2**63, and loses digits.
            found = np.array(values, object)
        found = _whole(field, found, datatype)
    elif datatype == "BYTES" and not all(isinstance(item, str) for item in found.flat):
        raise InvalidInput(field, _short(values), "be texts")
    if found.size != n:
        raise InvalidInput(field, f"{found.size} values", f"be {n}, as the shape {list(shape)} says")
    if datatype == "BYTES":
        encoded = np.empty(n, object)
        encoded[:] = [str(item).encode("utf-8", "surrogatepass") for item in found.flat]
        found = encoded
    with np.errstate(over="ignore"):
        return found.astype(kind, copy=False).reshape(tuple(shape))


def from_bytes(
    where: str, datatype: str, shape: Sequence[int], data: bytes | memoryview, *, field: str = ""
) -> np.ndarray:
    """Makes a tensor of its bytes; it may share them, so it must not be written to.

    Args:
        where: What an error calls it, such as `"inputs[0]"`.
        datatype: As the request has it.
        shape: As the request has it.
        data: The bytes.
        field: What an error calls its bytes; by default the parameter of HTTP that tells their number.

    Raises:
        InvalidInput: If type, shape and bytes do not fit together.

    Example:
        >>> from_bytes("inputs[0]", "INT32", [2], bytes([1, 0, 0, 0, 2, 0, 0, 0])).tolist()
        [1, 2]
    """
    kind = _known(where, datatype)
    n = _size(where, shape)
    field = field or f"{where}.parameters.binary_data_size"
    if datatype == "BYTES":
        return _split(field, n, bytes(data)).reshape(tuple(shape))
    if len(data) != n * kind.itemsize:
        wanted = f"be {n * kind.itemsize} for {n} of {datatype}"
        raise InvalidInput(field, len(data), wanted)
    if datatype == "BOOL":
        return (np.frombuffer(data, np.uint8) != 0).reshape(tuple(shape))
    return np.frombuffer(data, kind).reshape(tuple(shape))


def to_bytes(tensor: np.ndarray) -> bytes:
    r"""Writes a tensor as the binary extension has it.

    Example:
        >>> to_bytes(np.array([b"a"], object))
        b'\x01\x00\x00\x00a'
    """
    if tensor.dtype.kind not in "SUO":
        kind = tensor.dtype.newbyteorder("<")
        return np.ascontiguousarray(tensor, dtype=kind).tobytes()
    parts: list[bytes] = []
    for item in tensor.flat:
        data = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass")
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def to_json(tensor: np.ndarray) -> bytes:
    """Writes the elements of a tensor as a flat list of JSON; what is not finite becomes null.

    Raises:
        InvalidInput: If an element of BYTES is no UTF-8, which JSON cannot hold.

    Example:
        >>> to_json(np.array([[0.5, np.nan]]))
        b'[0.5,null]'
    """
    if tensor.dtype.kind not in "SUO":
        if tensor.dtype.kind == "f" and tensor.dtype.itemsize < 8:
            # The shortest text that reads as the same float32, not the digits of its float64.
            return _narrow(tensor)
        return msgspec.json.encode(tensor.ravel().tolist())
    try:
        return msgspec.json.encode([item.decode() if isinstance(item, bytes) else str(item) for item in tensor.flat])
    except UnicodeDecodeError as error:
        raise InvalidInput("outputs", error.object[:40], "be UTF-8 in JSON", "Ask for binary data instead") from None


def _narrow(tensor: np.ndarray) -> bytes:
    flat = tensor.ravel()
    texts = [str(item) if ok else "null" for item, ok in zip(flat, np.isfinite(flat).tolist(), strict=True)]
    return f"[{','.join(texts)}]".encode()


def _known(where: str, datatype: str) -> np.dtype[Any]:
    try:
        return DATATYPES[datatype]
    except KeyError:
        raise InvalidInput(f"{where}.datatype", datatype, f"be one of {', '.join(DATATYPES)}") from None


def _size(where: str, shape: Sequence[int]) -> int:
    if len(shape) > _MOST_AXES:
        raise InvalidInput(f"{where}.shape", f"{len(shape)} axes", f"have at most {_MOST_AXES}")
    if any(length < 0 for length in shape):
        raise InvalidInput(f"{where}.shape", list(shape), "have lengths of 0 or more")
    # An array is laid out as if its empty axes were not there.
    if math.prod(length or 1 for length in shape) > _LONGEST:
        raise InvalidInput(f"{where}.shape", list(shape), f"hold at most {_LONGEST} elements")
    return math.prod(shape)


def _short(values: Any) -> Any:
    text = repr(values)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kinds(values: list[Any]) -> set[type]:
    kinds = set(map(type, values))
    return kinds if list not in kinds else set(map(type, _texts(values).tolist()))


def _texts(values: list[Any]) -> np.ndarray:
    flat: list[Any] = []
    stack = [iter(values)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            flat.append(item)
        else:
            stack.pop()
    out = np.empty(len(flat), object)
    out[:] = flat
    return out


def _floats(field: str, found: np.ndarray) -> np.ndarray:
    if found.dtype.kind in "iuf":
        return found
    if found.dtype == object and all(item is None or type(item) in (int, float) for item in found.flat):
        try:
            return np.array([np.nan if item is None else float(item) for item in found.flat])
        except OverflowError:
            raise InvalidInput(field, _short(found.tolist()), "be numbers that a float64 holds") from None
    raise InvalidInput(field, _short(found.tolist()), "be numbers")


def _whole(field: str, found: np.ndarray, datatype: str) -> np.ndarray:
    limits = np.iinfo(DATATYPES[datatype])
    flat = found.ravel().tolist()
    for item in flat if found.dtype.kind not in "iu" else ():
        if isinstance(item, bool) or not isinstance(item, int | float) or item != item or item % 1 != 0:
            raise InvalidInput(field, item, f"be a whole number, as {datatype} holds")
    least, most = min(flat), max(flat)
    if least < limits.min or most > limits.max:
        raise InvalidInput(field, least if least < limits.min else most, f"fit {datatype}")
    return found if found.dtype.kind in "iu" else np.array([int(item) for item in flat], DATATYPES[datatype])


def _split(field: str, n: int, data: bytes) -> np.ndarray:
    if 4 * n > len(data):
        raise InvalidInput(field, len(data), f"hold {n} elements of BYTES")
    out = np.empty(n, object)
    at = 0
    for i in range(n):
        if at + 4 > len(data) or at + 4 + _LENGTH.unpack_from(data, at)[0] > len(data):
            raise InvalidInput(field, len(data), f"hold {n} elements of BYTES")
        length = _LENGTH.unpack_from(data, at)[0]
        out[i] = data[at + 4 : at + 4 + length]
        at += 4 + length
    if at != len(data):
        raise InvalidInput(field, len(data), f"be {at}, which {n} elements take")
    return out
