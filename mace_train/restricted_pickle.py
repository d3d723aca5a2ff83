"""Tensors out of a file that ``torch.save`` wrote, without running anything that the file names.

A pickle is a program: it may name any function of any module and call it. Here a name is looked up
in one table of exact (module, name) pairs, all of them made in this file; every other class is a
``Shell`` that keeps its name, arguments and state and has none of the class's code. Names with
dots, which reach attributes of attributes, are refused, and so is the format before PyTorch 1.6,
which is a bare pickle. Only opcodes that ``torch.save`` needs are taken, keys are text or numbers
(hashing a nested tuple may take forever), and tensors exist only when the pickle has ended: before,
they are holders without torch's code. Storages are read from the zip file here, sizes are checked
against them.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
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
_BUILTINS = ("builtins", "__builtin__")  # as Python 3 and protocol 2 call it
_NUMPY_NUMBERS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT"
    "|BINUNICODE8?|SHORT_BINUNICODE|(SHORT_)?BINSTRING|(SHORT_)?BINBYTES|EMPTY_TUPLE|TUPLE[123]?"
    "|EMPTY_LIST|APPENDS?|EMPTY_DICT|SETITEMS?|BINPUT|LONG_BINPUT|MEMOIZE|BINGET|LONG_BINGET"
    "|GLOBAL|STACK_GLOBAL|REDUCE|BUILD|NEWOBJ|NEWOBJ_EX|BINPERSID"
)
_LARGEST_PICKLE = 16 << 20  # bytes, which may ask for 70 times more memory; models have below 1 MiB
_MOST_DIMENSIONS = 64  # of a tensor; torch has the same limit
_MOST_CLASSES = 10_000  # that a file may name; models of mace-torch have about 60


class RestrictedPickleError(Exception):
    """The file is not what ``torch.save`` writes, is damaged, or asks for more than tensors."""


class Shell:
    """An object of any class: what it was made from and its state, none of its code."""

    module: str = ""  # of the class that the file names
    name: str = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None  # until __setstate__; a pickle may make objects without __init__

    def __new__(cls, *arguments: Any, **keywords: Any) -> "Shell":
        """Keep the arguments, which are all that a tuple has."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

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


def load_tensors(path: Path | bytes) -> Any:
    """What a file of ``torch.save`` holds: tensors, numbers, text, containers, and shells.

    The modules of a TorchScript file, without their code, are read in the same way.

    Args:
        path: The file, or its bytes.

    Raises:
        RestrictedPickleError: see there.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(path) if isinstance(path, bytes) else path) as zipped:
            return _load(zipped)
    except zipfile.BadZipFile as error:
        raise RestrictedPickleError(
            f"{error}; files that PyTorch before 1.6 wrote are bare pickles and are not read"
        ) from None
    except (RestrictedPickleError, OSError):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise RestrictedPickleError(f"{type(error).__name__}: {error}") from error


def _load(zipped: zipfile.ZipFile) -> Any:
    found = [name for name in zipped.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise RestrictedPickleError(f"{len(found)} entries data.pkl, expected one")
    folder = found[0].removesuffix("data.pkl")
    has_order = f"{folder}byteorder" in zipped.namelist()
    order = _entry(zipped, f"{folder}byteorder", 20).decode() if has_order else ""
    if order not in ("", sys.byteorder):
        raise RestrictedPickleError(f"byte order {order!r}, this machine is {sys.byteorder}")
    pickled = _entry(zipped, found[0], _LARGEST_PICKLE)
    _check_opcodes(pickled)
    loaded = _Unpickler(pickled, lambda key: _entry(zipped, f"{folder}data/{key}")).load()
    return _unwrapped(loaded, {})


def _entry(zipped: zipfile.ZipFile, name: str, largest: float = math.inf) -> bytes:
    """The bytes of an entry, which are as many as in the file."""
    info = zipped.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise RestrictedPickleError("compressed entries, which torch.save does not write")
    if info.file_size > largest:
        raise RestrictedPickleError(f"{name} has {info.file_size} bytes, more than {largest}")
    return zipped.read(info)


def _check_opcodes(pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if not _OPCODES.fullmatch(opcode.name):
            raise RestrictedPickleError(f"the opcode {opcode.name}, not one of torch.save")
        if opcode.name == "LONG1" and not -(2**63) <= int(argument or 0) < 2**63:
            raise RestrictedPickleError("a number of more than 8 bytes")


def _are_counts(*numbers: Any) -> bool:
    """Whether these are lengths or offsets: 0 or more, and few bits, so that products are quick."""
    return all(type(n) is int and 0 <= n < 2**63 for n in numbers)


class _Held(Shell):
    """A tensor or a storage while the pickle is read, without the code of torch's class."""

    def __init__(self, tensor: "torch.Tensor", is_storage: bool) -> None:
        self.tensor, self.is_storage = tensor, is_storage

    def __setstate__(self, state: Any) -> None:
        raise RestrictedPickleError("a state for a tensor")


def _unwrapped(value: Any, done: dict[int, Any]) -> Any:
    """The same with tensors in place of their holders; containers and shells are changed."""
    if isinstance(value, _Held):
        return value.tensor
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, dict):
        for key, item in list(dict.items(value)):
            dict.__setitem__(value, key, _unwrapped(item, done))
    elif isinstance(value, list):
        value[:] = [_unwrapped(item, done) for item in value]
    elif isinstance(value, tuple):
        done[id(value)] = tuple(_unwrapped(item, done) for item in value)
    elif isinstance(value, Shell):
        value.arguments = _unwrapped(value.arguments, done)
        value.state = _unwrapped(value.state, done)
    return done[id(value)]


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):
    """Looks names up in a table of its own; the table lives as long as one file is read.

    The unpickler in Python, since the one in C has no place to look at keys.
    """

    def __init__(self, pickled: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._read_storage = read_storage
        self._storages: dict[str, _Held] = {}
        self._known = _known_names()
        self._shells: dict[tuple[str, str], type[Shell]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """An entry of the table, or a class without code."""
        if "." in name:
            raise RestrictedPickleError(f"it names {module}.{name}, an attribute of an object")
        if (module, name) in self._known:
            return self._known[module, name]
        if (module, name) not in self._shells:
            if len(self._shells) >= _MOST_CLASSES:  # each takes a kilobyte of memory
                raise RestrictedPickleError(f"it names more than {_MOST_CLASSES} classes")
            attributes = {"__module__": __name__, "module": module, "name": name}
            self._shells[module, name] = type("Shell", (Shell,), attributes)
        return self._shells[module, name]

    def persistent_load(self, identity: Any) -> _Held:
        """The storage that a tensor refers to, flat."""
        import torch

        label, dtype, key, _, n_elements = identity
        if label != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise RestrictedPickleError("a reference to something that is no storage")
        if key not in self._storages:
            data = bytearray(self._read_storage(key))
            if not _are_counts(n_elements) or len(data) != n_elements * dtype.itemsize:
                expected = f"{_number(n_elements)} of {dtype}"
                raise RestrictedPickleError(
                    f"storage {key} has {len(data)} bytes, expected {expected}"
                )
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[key] = _Held(flat, is_storage=True)
        return self._storages[key]

    def load_setitem(self) -> None:
        """Check the key first."""
        _check_simple(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Check the keys first."""
        _check_simple(self.stack[::2])
        super().load_setitems()

    dispatch = {  # noqa: RUF012
        **_InPython.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _check_simple(keys: Sequence[Any]) -> None:
    for key in keys:
        if not isinstance(key, (str, int, float, type(None))):
            raise RestrictedPickleError(f"a {type(key).__name__} as a key")


def _number(value: Any) -> str:
    """A number as text; only the type of what is none, whose text may be endless."""
    return str(value) if type(value) is int else f"a {type(value).__name__}"


def _known_names() -> dict[tuple[str, str], Any]:
    """All that a file can name beside shells; functions made for this file alone."""
    import torch

    def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
        if not (isinstance(storage, _Held) and storage.is_storage):
            raise RestrictedPickleError("a tensor without a storage")
        if not (type(size) is tuple and type(stride) is tuple and len(size) == len(stride)):
            raise RestrictedPickleError("a tensor of size and stride that do not fit")
        if len(size) > _MOST_DIMENSIONS:
            raise RestrictedPickleError(f"a tensor of more than {_MOST_DIMENSIONS} dimensions")
        if not _are_counts(offset, *size, *stride):
            raise RestrictedPickleError(
                "a tensor of size or stride that are no numbers from 0 to 2**63"
            )
        n_elements, flat = math.prod(size), storage.tensor
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_elements > flat.numel() or (n_elements and last >= flat.numel()):
            raise RestrictedPickleError("a tensor of size beyond the end of its storage")
        return _Held(torch.as_strided(flat, size, stride, offset), is_storage=False)

    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data

    def size(numbers: Any = ()) -> tuple[Any, ...]:
        return numbers if type(numbers) is tuple else ()

    def make_set(items: Any = ()) -> set[Any]:
        _check_simple(items)
        return set(items)

    def make_list() -> list[Any]:
        return []

    def make_dict() -> dict[Any, Any]:
        return OrderedDict()

    n_encoded = 0

    def encode(text: Any, encoding: Any) -> bytes:
        nonlocal n_encoded
        if type(text) is not str or encoding != "latin1":
            raise RestrictedPickleError("text in another encoding than that of bytes")
        n_encoded += len(text)
        if n_encoded > _LARGEST_PICKLE:
            raise RestrictedPickleError("more bytes than a pickle may have")
        return text.encode("latin1")

    def numpy_number(dtype: Any, data: Any) -> Any:
        code = dtype.arguments[0] if isinstance(dtype, Shell) and dtype.arguments else None
        if type(code) is not str or code not in _NUMPY_NUMBERS or type(data) is not bytes:
            raise RestrictedPickleError("a number of NumPy that is none")
        return struct.unpack(f"<{_NUMPY_NUMBERS[code]}", data)[0]

    dtypes = {name: getattr(torch, name) for name in _STORAGES.values()}
    return {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch", "Size"): size,
        ("collections", "OrderedDict"): make_dict,
        **{(module, "set"): make_set for module in _BUILTINS},
        **{(module, "dict"): make_dict for module in _BUILTINS},
        **{(module, "list"): make_list for module in _BUILTINS},
        ("_codecs", "encode"): encode,  # of bytes, in old protocols
        **{(f"numpy.{core}.multiarray", "scalar"): numpy_number for core in ("core", "_core")},
        **{("torch", storage): dtypes[name] for storage, name in _STORAGES.items()},
        **{("torch", name): dtype for name, dtype in dtypes.items()},
    }
