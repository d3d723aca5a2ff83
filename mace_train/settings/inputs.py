"""Inputs of a model beside the geometry, such as the total charge: what they are, and their names.

``model.embedding_specs`` says which inputs a model has, as in mace-torch; ``data.info_keys`` and
``data.arrays_keys`` say where they stand in the files, under the names of ``ase.Atoms``: one number
per structure in ``info``, one per atom in ``arrays``.
"""

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mace_train.checks import check_choice, did_you_mean
from mace_train.errors import InputError
from mace_train.settings.ranges import Range

TYPES = ("categorical", "continuous")
PER = ("graph", "atom")
KEY_SETTINGS = {"graph": "info_keys", "atom": "arrays_keys"}  # which also names the place in Atoms
# what mace-torch takes where a structure does not say it (mace/data/atomic_data.py)
MACE_TORCH_DEFAULTS = {"total_charge": 0.0, "total_spin": 1.0, "elec_temp": 0.0}
# names by which mace-torch's calculator finds them in atoms.info (mace/calculators/mace.py)
CALCULATOR_KEYS = {"total_charge": "charge", "total_spin": "spin"}
_OF_A_GRAPH = (  # what a batch of mace-torch holds under these names is something else
    *("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "pbc", "batch"),
    *("ptr", "head", "weight", "energy", "forces", "stress", "virials"),
)
VALUE = Range(-1e8, 1e8, reason="single precision holds no larger integers one by one")
_WIDTH = Range(1, 8192, reason="mace-torch's examples have 32 to 64")
_CLASSES = Range(1, 10**6, reason="mace-torch's examples have 101 to 201")
_OFFSET = Range(-(10**6), 10**6, reason="it moves the smallest value to class 0")
_KEYS = ("type", "per", "emb_dim", "num_classes", "offset", "in_dim", "use_bias", "key", "default")
_EXAMPLE = (
    "'{total_charge: {type: categorical, per: graph, num_classes: 21, offset: 10, emb_dim: 64}}'"
)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: a class, or a number, of each structure or atom, and its embedding."""

    name: str
    type: str  # of TYPES
    per: str  # of PER
    emb_dim: int
    num_classes: int = 1  # categorical: integers from -offset to num_classes - offset - 1
    offset: int = 0
    use_bias: bool = True  # continuous
    key: str | None = None  # in files and atoms; None: the name
    default: float | None = None  # of structures that do not state it; None: an error

    @property
    def is_class(self) -> bool:
        """Whether it is one of ``num_classes`` integers."""
        return self.type == "categorical"

    @property
    def limits(self) -> Range:
        """The range of its values."""
        if not self.is_class:
            return VALUE
        least = -self.offset
        reason = f"num_classes: {self.num_classes}, offset: {self.offset}"
        return Range(least, least + self.num_classes - 1, reason=reason)

    def content(self) -> dict[str, Any]:
        """As mace-torch's embedding_specs have it."""
        found: dict[str, Any] = {"type": self.type, "per": self.per}
        if self.is_class:
            found |= {"num_classes": self.num_classes, "offset": self.offset}
        else:
            found |= {"in_dim": 1, "use_bias": self.use_bias}
        found["emb_dim"] = self.emb_dim
        if self.key is not None:
            found["key"] = self.key
        if self.default != MACE_TORCH_DEFAULTS.get(self.name):
            found["default"] = self.default
        return found


def input_specs(given: Any) -> tuple[InputSpec, ...]:
    """The inputs that ``model.embedding_specs`` declares, in its order; none for null.

    Raises:
        InputError: it is no mapping of names to specifications, or one of them cannot be built.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"model.embedding_specs={given!r} must map names of inputs to what they are, such as "
            f"{_EXAMPLE}, or be null"
        )
    return tuple(_spec(name, spec) for name, spec in given.items())


def known_keys(given: Mapping[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    """embedding_specs of mace-torch, which ignores unknown keys, without these."""
    if not given:
        return None
    return {
        name: {key: value for key, value in spec.items() if key in _KEYS}
        for name, spec in given.items()
    }


def checked_specs(given: Any, readout: bool) -> dict[str, dict[str, Any]] | None:
    """``model.embedding_specs`` with all defaults: equal models get equal settings.

    Raises:
        InputError: as ``input_specs``; or a ``readout`` of inputs that there are not.
    """
    specs = input_specs(given)
    if readout and not specs:
        raise InputError(
            "model.use_embedding_readout=true needs model.embedding_specs, whose inputs it reads"
        )
    return {spec.name: spec.content() for spec in specs} or None


def _spec(name: Any, given: Any) -> InputSpec:
    _check_name("model.embedding_specs", name)
    where = f"model.embedding_specs.{name}"
    if not isinstance(given, Mapping):
        raise InputError(f"{where}={given!r} must be a mapping, such as {_EXAMPLE}")
    unknown = sorted(set(map(str, given)) - set(_KEYS))
    if unknown:
        hint = did_you_mean(unknown[0], _KEYS)
        raise InputError(
            f"{where}: no {', '.join(unknown)} here{hint}; it takes {', '.join(_KEYS)}"
        )
    kind, per = (str(given.get(key, "nothing")) for key in ("type", "per"))
    check_choice(f"{where}.type", kind, TYPES)
    check_choice(f"{where}.per", per, PER)
    if given.get("in_dim", 1) != 1:
        raise InputError(
            f"{where}.in_dim={given['in_dim']!r}: an input is one number per structure or atom "
            "here; give each component a name of its own, with in_dim: 1"
        )
    key, default = given.get("key"), given.get("default", MACE_TORCH_DEFAULTS.get(name))
    if key is not None and not isinstance(key, str):
        raise InputError(f"{where}.key={key!r} must be the name of a value in the files")
    if not isinstance(given.get("use_bias", True), bool):
        raise InputError(f"{where}.use_bias={given['use_bias']!r} must be true or false")
    spec = InputSpec(
        name=name,
        type=kind,
        per=per,
        emb_dim=_whole(where, given, "emb_dim", _WIDTH),
        num_classes=_whole(where, given, "num_classes", _CLASSES) if kind == TYPES[0] else 1,
        offset=_whole(where, given, "offset", _OFFSET, 0) if kind == TYPES[0] else 0,
        use_bias=bool(given.get("use_bias", True)),
        key=None if key == name else key,
        default=None if default is None else _number(f"{where}.default", default),
    )
    if spec.default is not None:
        spec.limits.check(f"{where}.default", spec.default)
    return spec


def _whole(where: str, given: Mapping[Any, Any], key: str, limits: Range, default: int = -1) -> int:
    value = given.get(key, None if default < 0 else default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}.{key}={value!r}: give a whole number, {limits}")
    limits.check(f"{where}.{key}", value)
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}={value!r}: give a number")
    VALUE.check(where, value)
    return float(value)


def _check_name(where: str, name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(
            f"{where}: an input cannot be named {name!r}; use letters, digits and underscores"
        )
    if name in _OF_A_GRAPH:
        raise InputError(f"{where}: {name} is part of every structure; choose another name")


def data_settings(specs: Sequence[InputSpec], keys: Mapping[str, str]) -> dict[str, Any]:
    """The settings ``data.*`` with which preprocess reads the inputs of a model.

    ``keys`` are names in the files by input, for those that do not state their own.
    """
    found: dict[str, dict[str, Any]] = {"info_keys": {}, "arrays_keys": {}, "input_defaults": {}}
    for spec in specs:
        key = spec.key or keys.get(spec.name, spec.name)
        found["info_keys" if spec.per == "graph" else "arrays_keys"][spec.name] = key
        if spec.default != MACE_TORCH_DEFAULTS.get(spec.name):
            found["input_defaults"][spec.name] = spec.default
    return {name: values for name, values in found.items() if values}


@dataclass(frozen=True)
class InputKey:
    """Where an input stands in a file, or in ``ase.Atoms``."""

    name: str
    keys: tuple[str, ...]  # names of the value; the first that is there counts
    per: str  # of PER
    default: float | None = None  # of structures that do not have it; None: an error
    is_given: bool = False  # by a setting of the command, not by the model

    @property
    def setting(self) -> str:
        """The setting that says where it stands."""
        return KEY_SETTINGS[self.per]


@dataclass(frozen=True)
class ReadInput:
    """How an input of the training data was read, which the model keeps: name and default."""

    key: str
    default: float | None = None


def as_read(
    given: Mapping[str, Any], read: Mapping[str, ReadInput], *, override: bool = False
) -> dict[str, dict[str, Any]]:
    """``embedding_specs`` with the keys and defaults of the data that a model is trained on.

    What a specification states itself stays, but for ``override``.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, spec in given.items():
        of_data = read.get(name)
        changes: dict[str, Any] = {} if of_data is None else {"key": of_data.key}
        if of_data is not None and of_data.default is not None:
            changes["default"] = of_data.default
        found[name] = {**spec, **changes} if override else {**changes, **spec}
    return found


def input_keys(info_keys: Any, arrays_keys: Any, defaults: Any) -> tuple[InputKey, ...]:
    """The inputs that ``data.info_keys``, ``data.arrays_keys`` and ``data.input_defaults`` name."""
    by_place = {"info_keys": (info_keys, "graph"), "arrays_keys": (arrays_keys, "atom")}
    given = {} if defaults is None else defaults
    if not isinstance(given, Mapping):
        raise InputError(f"data.input_defaults={given!r} must map names of inputs to numbers")
    found: dict[str, InputKey] = {}
    for setting, (names, per) in by_place.items():
        for name, key in keys_by_name(f"data.{setting}", names).items():
            if name in found:
                raise InputError(
                    f"data.info_keys and data.arrays_keys both name {name}; an input is read per "
                    "structure or per atom, leave one out"
                )
            default = given.get(name, MACE_TORCH_DEFAULTS.get(name))
            if default is not None:
                default = _number(f"data.input_defaults.{name}", default)
            found[name] = InputKey(name, (key,), per, default, is_given=True)
    unused = sorted(map(str, set(given) - set(found)))
    if unused:
        raise InputError(
            f"data.input_defaults names {', '.join(unused)}, which neither "
            "data.info_keys nor data.arrays_keys reads; add it there, or leave it out"
        )
    return tuple(found.values())


def keys_by_name(where: str, given: Any) -> dict[str, str]:
    """Keys by the names of inputs, from a mapping, a list of names, a name, or None."""
    if given is None:
        return {}
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
        given = {name: name for name in given}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given.values()):
        raise InputError(
            f"{where}={given!r} must map names of inputs to names in the files, such as "
            "'{total_charge: charge}', or list names that are the same, such as '[total_charge]'"
        )
    for name in given:
        _check_name(where, name)
    return dict(given)


def check_keys(info_keys: Any, arrays_keys: Any) -> None:
    """InputError unless both name values in files, whatever the inputs of the model are."""
    keys_by_name("info_keys", info_keys)
    keys_by_name("arrays_keys", arrays_keys)


def model_input_keys(
    specs: Sequence[InputSpec],
    info_keys: Any = None,
    arrays_keys: Any = None,
    *,
    calculator: bool = False,
) -> tuple[InputKey, ...]:
    """Where the inputs of a model stand: under the keys given, or else their own and their names.

    Their own are those of the model's settings, or of the data it was trained on. A ``calculator``
    looks under the names of mace-torch's calculators too.

    Raises:
        InputError: keys of an input that the model does not have.
    """
    given = {
        "graph": keys_by_name("info_keys", info_keys),
        "atom": keys_by_name("arrays_keys", arrays_keys),
    }
    found = []
    for spec in specs:
        key = given[spec.per].pop(spec.name, None)
        keys = [key] if key is not None else [spec.key or spec.name, spec.name]
        if calculator and key is None and spec.per == "graph":
            keys += filter(None, [CALCULATOR_KEYS.get(spec.name)])
        distinct = tuple(dict.fromkeys(keys))
        found.append(InputKey(spec.name, distinct, spec.per, spec.default, key is not None))
    for setting, per in (("info_keys", "graph"), ("arrays_keys", "atom")):
        if given[per]:
            of_model = [spec.name for spec in specs if spec.per == per]
            raise InputError(
                f"{setting} names {', '.join(given[per])}, but the inputs of the model per "
                f"{'structure' if per == 'graph' else 'atom'} are: {', '.join(of_model) or 'none'}"
            )
    return tuple(found)
