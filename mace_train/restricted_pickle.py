"""Tensors out of a file that ``torch.save`` wrote, without running anything that the file names.

A pickle is a program: it may name any function of any module and call it. Here a name is looked up
in one table of exact (module, name) pairs, all of them made in this file; every other class is a
``Shell`` that keeps its state and has none of the class's code. Names with dots, which reach
attributes of attributes, are refused, and so is the format before PyTorch 1.6, which is a bare
pickle. Storages are read from the zip file here, sizes are checked against what lies there.
"""

import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_LARGEST_PICKLE = 64 << 20  # bytes; models of mace-torch have less than 1 MiB of it


class RestrictedPickleError(Exception):
    """The file is not what ``torch.save`` writes, is damaged, or asks for more than tensors."""


class Shell:
    """An object of any class: its state, none of its code."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **keywords: Any) -> "Shell":
        """Make another, where the object was a function or class."""
        return Shell()

    def append(self, item: Any) -> None:
        """Drop an item of a list or set that the class extends."""

    def extend(self, items: Any) -> None:
        """Drop items of a list that the class extends."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop an item of a mapping that the class extends."""


def load_tensors(path: Path) -> Any:
    """What a file of ``torch.save`` holds: tensors, numbers, text, containers, and shells.

    Raises:
        RestrictedPickleError: see there.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            return _load(zipped)
    except zipfile.BadZipFile as error:
        raise RestrictedPickleError(
            f"{error}; files that PyTorch before 1.6 wrote are bare pickles and are not read"
        ) from None
    except RestrictedPickleError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise RestrictedPickleError(f"{type(error).__name__}: {error}") from error


def _load(zipped: zipfile.ZipFile) -> Any:
    found = [info for info in zipped.infolist() if info.filename.endswith("/data.pkl")]
    if len(found) != 1:
        raise RestrictedPickleError(f"{len(found)} entries data.pkl, expected one")
    if any(info.compress_type != zipfile.ZIP_STORED for info in zipped.infolist()):
        raise RestrictedPickleError("compressed entries, which torch.save does not write")
    if found[0].file_size > _LARGEST_PICKLE:
        raise RestrictedPickleError(f"data.pkl has {found[0].file_size} bytes")
    folder = found[0].filename.removesuffix("data.pkl")
    names = zipped.namelist()
    order = zipped.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in names else ""
    if order not in ("", sys.byteorder):
        raise RestrictedPickleError(f"byte order {order!r}, this machine has {sys.byteorder!r}")
    with zipped.open(found[0]) as file:
        return _Unpickler(file, lambda key: zipped.read(f"{folder}data/{key}")).load()


class _Unpickler(pickle.Unpickler):
    """Looks names up in a table of its own; the table lives as long as one file is read."""

    def __init__(self, file: Any, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._read_storage = read_storage
        self._storages: dict[str, torch.Tensor] = {}
        self._known = _known_names()

    def find_class(self, module: str, name: str) -> Any:
        """An entry of the table, or a class without code."""
        if "." in name:
            raise RestrictedPickleError(f"it names {module}.{name}, an attribute of an object")
        if (module, name) in self._known:
            return self._known[module, name]
        return type("Shell", (Shell,), {"__module__": __name__})

    def persistent_load(self, identity: Any) -> "torch.Tensor":
        """The storage that a tensor refers to, flat."""
        import torch

        label, dtype, key, _, n_elements = identity
        if label != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise RestrictedPickleError(f"it refers to {identity!r}, which is no storage")
        if key not in self._storages:
            data = bytearray(self._read_storage(str(key)))
            if len(data) != n_elements * dtype.itemsize:
                raise RestrictedPickleError(
                    f"storage {key} has {len(data)} bytes, expected {n_elements} of {dtype}"
                )
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self._storages[key]


def _known_names() -> dict[tuple[str, str], Any]:
    """All that a file can name beside shells."""
    import torch

    def rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        if not isinstance(storage, torch.Tensor):
            raise RestrictedPickleError("a tensor without a storage")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise RestrictedPickleError(f"a tensor of size {size} and stride {stride}")
        n_elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_elements > storage.numel() or (n_elements and last >= storage.numel()):
            raise RestrictedPickleError(f"a tensor of size {size} beyond the end of its storage")
        return torch.as_strided(storage, size, stride, offset)

    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data

    def size(numbers: Any = ()) -> tuple[int, ...]:
        return tuple(numbers)

    dtypes = {name: getattr(torch, name) for name in _STORAGES.values()}
    return {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch", "Size"): size,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("builtins", "dict"): dict,
        ("builtins", "list"): list,
        **{("torch", storage): dtypes[name] for storage, name in _STORAGES.items()},
        **{("torch", name): dtype for name, dtype in dtypes.items()},
    }
