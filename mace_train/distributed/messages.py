"""What ranks send each other, as bytes: plain values, arrays and tensors, and never a pickle.

A message is JSON that describes the value, and after it the bytes of its arrays and tensors. What
is decoded equals what was encoded, types included: None, bool, int, float, str, Path, and lists,
tuples and dictionaries of them, NumPy arrays and tensors (on the CPU). Nothing that arrives can run
code; what cannot be decoded is a ``ValueError``.

Records are the small values of the key-value store, to which others than the ranks may write: flat
JSON objects, of which a reader says the keys and their types.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PREFIX = 8  # bytes that hold the length of the JSON
_LONGEST_RECORD = 4096  # bytes
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_TORCH_DTYPES = {name: getattr(torch, name) for name in (*_DTYPES, "bfloat16")}


def encode(value: Any) -> bytearray:
    """The message of ``value``; TypeError for what is neither plain nor an array or tensor."""
    buffers: list[bytes] = []
    text = json.dumps(_described(value, buffers), separators=(",", ":")).encode()
    return bytearray().join((len(text).to_bytes(_PREFIX, "little"), text, *buffers))


def decode(message: bytes | bytearray | memoryview) -> Any:
    """The value of a message; ValueError if it is none."""
    view = memoryview(message)
    end = _PREFIX + int.from_bytes(view[:_PREFIX], "little")
    if not _PREFIX < end <= len(view):
        raise ValueError("a message that ends before its text does")
    reader = _MessageReader(view[end:])
    try:
        value = reader.value(json.loads(bytes(view[_PREFIX:end])))
    except Exception as error:  # junk may raise anything, in NumPy and PyTorch, too
        raise ValueError(f"a message that holds no value ({_kind(error)})") from None
    if reader.rest:
        raise ValueError("a message that is longer than its value")
    return value


def encode_record(**values: bool | int | str) -> str:
    """A record for the store."""
    return json.dumps(values)


def decode_record(data: bytes, **types: type) -> dict[str, Any]:
    """The values of a record that has exactly these keys and types; ValueError otherwise."""
    if len(data) > _LONGEST_RECORD:
        raise ValueError(f"a record of {len(data)} bytes, at most {_LONGEST_RECORD} are possible")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a record that is no JSON ({_kind(error)})") from None
    if not isinstance(record, dict) or {k: type(v) for k, v in record.items()} != types:
        raise ValueError(f"a record without {', '.join(types)}")
    if not all(value.isprintable() for value in record.values() if isinstance(value, str)):
        raise ValueError("a record with control characters")
    return record


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:100]}"


def _described(value: Any, buffers: list[bytes]) -> Any:
    """``value`` as JSON: plain values are themselves, all others are {kind: ...}."""
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_described(item, buffers) for item in value]
    if kind is tuple:
        return {"tuple": [_described(item, buffers) for item in value]}
    if kind is dict:
        return {
            "dict": [[_described(k, buffers), _described(v, buffers)] for k, v in value.items()]
        }
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        buffers.append(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
        return {"tensor": [_known(str(value.dtype).removeprefix("torch.")), [*value.shape]]}
    if isinstance(value, np.ndarray):
        buffers.append(value.astype(value.dtype.newbyteorder("="), copy=False).tobytes())
        return {"array": [_known(value.dtype.name), [*value.shape]]}
    raise TypeError(f"ranks send plain values, arrays and tensors, not {kind.__name__}")


def _known(dtype: str) -> str:
    if dtype not in _TORCH_DTYPES:
        raise TypeError(f"ranks send no arrays or tensors of {dtype}")
    return dtype


class _MessageReader:
    """Makes values from their descriptions, in the order in which their bytes follow."""

    def __init__(self, buffers: memoryview) -> None:
        self.rest = buffers

    def value(self, described: Any) -> Any:
        """The value of a description."""
        if isinstance(described, list):
            return [self.value(item) for item in described]
        if not isinstance(described, dict):
            return described
        ((kind, content),) = described.items()
        if kind == "tuple":
            return tuple(self.value(item) for item in content)
        if kind == "dict":
            return {self.value(key): self.value(item) for key, item in content}
        if kind == "path":
            return Path(content)
        if kind == "tensor":
            name, shape = content
            dtype = _TORCH_DTYPES[name]
            found = self._bytes(shape, dtype.itemsize)
            value = torch.empty(shape, dtype=dtype)
            if len(found):  # PyTorch does not change the type of empty tensors
                value = torch.from_numpy(found).view(dtype).reshape(shape)
            return value
        if kind == "array" and content[0] in _DTYPES:
            name, shape = content
            return self._bytes(shape, np.dtype(name).itemsize).view(name).reshape(shape)
        raise KeyError(kind)

    def _bytes(self, shape: list[int], itemsize: int) -> NDArray[np.uint8]:
        """A copy of the bytes of the next array."""
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("a shape that is no list of lengths")
        n_bytes = math.prod(shape) * itemsize
        if n_bytes > len(self.rest):
            raise ValueError("ends before its arrays do")
        found, self.rest = self.rest[:n_bytes], self.rest[n_bytes:]
        return np.frombuffer(found, np.uint8).copy()
