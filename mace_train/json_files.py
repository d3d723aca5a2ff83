"""JSON files read by what they must hold, so that a damaged one ends in one message."""

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mace_train.errors import InputError, StorageError, system_error

T = TypeVar("T")
_SHOWN = 60  # characters of a wrong value, in a message


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """The content of a JSON file.

    Raises ``InputError``, which ends with ``remedy``, if it cannot be read, is no JSON, or holds no
    ``kind`` (dict or list).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        explained = system_error(error, path)
        if isinstance(explained, StorageError):  # not the file, but the disk
            raise explained from None
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(content, kind):
        raise InputError(f"{path} holds {_shown(content)}, not {_name(kind)}; {remedy}")
    return content


def converted(kind: Any, value: Any, name: str = "") -> Any:
    """A value of JSON as ``kind``: a dataclass, list, dict, number, string, bool, None or a union.

    Keys of a dict[int, ...] may be strings, as JSON writes them. NaN and infinity are no numbers.

    >>> converted(dict[int, list[float]], {"8": [1, 2.5]})
    {8: [1.0, 2.5]}

    Raises:
        ValueError: what of it is not of its kind, by its dotted name.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(parts, value, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(kind, value, name)
    if (origin or kind) is list and isinstance(value, list):
        item = parts[0] if parts else Any
        return [converted(item, part, f"{name}[{i}]") for i, part in enumerate(value)]
    if (origin or kind) is dict and isinstance(value, dict):
        key, item = parts or (str, Any)
        return {_key(key, k, name): converted(item, v, _below(name, k)) for k, v in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, name)
    if kind is int and isinstance(value, bool):
        raise _wrong(name, value, kind)
    if isinstance(kind, type) and not dataclasses.is_dataclass(kind) and isinstance(value, kind):
        return value
    raise _wrong(name, value, kind)


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    for kind in kinds:
        if kind is NoneType and value is None:
            return None
    for kind in kinds:
        try:
            return converted(kind, value, name)
        except ValueError:
            continue
    raise _wrong(name, value, " or ".join(_name(kind) for kind in kinds))


def _dataclass(kind: Any, value: dict[str, Any], name: str) -> Any:
    hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    none = dataclasses.MISSING
    required = [k for k, f in fields.items() if f.default is none and f.default_factory is none]
    wrong = [f"{_below(name, key)} is missing" for key in required if key not in value]
    wrong += [f"{_below(name, key)} is not known" for key in value if key not in fields]
    if wrong:
        raise ValueError(", ".join(wrong[:4]))
    return kind(**{key: converted(hints[key], v, _below(name, key)) for key, v in value.items()})


def _finite(value: float, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong(name, value, "a finite number")
    return number


def _key(kind: Any, key: str, name: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise _wrong(f"{name}: key", key, int) from None


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _wrong(name: str, value: Any, kind: Any) -> ValueError:
    return ValueError(f"{name}={_shown(value)} is not {_name(kind)}")


def _name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        list: "a list",
        dict: "a mapping",
        NoneType: "null",
    }
    if isinstance(kind, str):
        return kind
    kind = get_origin(kind) or kind
    return names.get(kind, "a mapping" if dataclasses.is_dataclass(kind) else str(kind))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a number of {int(value).bit_length()} bits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
