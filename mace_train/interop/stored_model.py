"""A whole model of mace-torch (a pickle) -> header and tensors, without mace-torch and its code.

``restricted_pickle`` gives the objects of the file as shells. Here a shell of a module has the
attributes that the module had, so that ``header_of`` reads it as it would the module itself. What
e3nn compiled lies in the file as bytes of TorchScript, whose tensors (couplings) are read in the
same way and whose code is not.
"""

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from mace_train.errors import InputError
from mace_train.interop.header import Header, header_of
from mace_train.restricted_pickle import RestrictedPickleError, Shell, load_tensors

_PACKAGES = ("mace", "e3nn", "torch", "opt_einsum_fx", "__torch__")  # __torch__: TorchScript
_MOST_MODULES = 10_000  # with those of compiled code; models of mace-torch have a few hundred
_MEMBERS = ("_parameters", "_buffers", "_modules")


def header_and_tensors(model: Shell) -> tuple[Header, dict[str, Tensor]]:
    """Header and state dict of a model that ``load_tensors`` found in a file.

    Raises:
        RestrictedPickleError: it is no model of mace-torch, or is not laid out as one.
        InputError: a model of another class, or with layers that differ.
    """
    if not _is_module(model):
        raise RestrictedPickleError(f"a {_name_of(model)}, not a model of mace-torch")
    try:
        tensors = dict(_tensors(model, "", _Count()))  # first: it counts the modules
        header: Header = json.loads(json.dumps(header_of(_attributes_of(model)), allow_nan=False))
    except InputError:
        raise
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as e:
        raise RestrictedPickleError(
            f"not laid out as mace_run_train of mace-torch 0.3.3 to 0.3.16 writes it "
            f"({type(e).__name__}: {e}); a model for cuequivariance is converted back with "
            "mace.cli.convert_cueq_e3nn"
        ) from e
    return header, {name: t.detach().clone() for name, t in tensors.items() if t.numel() > 0}


def _is_module(value: Any) -> bool:
    """Whether it was a torch.nn.Module when the file was written."""
    if not (isinstance(value, Shell) and isinstance(value.state, dict)):
        return False
    return all(isinstance(value.state.get(member), dict) for member in _MEMBERS)


def _name_of(value: Any) -> str:
    name = f"{value.module}.{value.name}" if isinstance(value, Shell) else type(value).__name__
    return name[:100]


class _Count:
    """Of modules: a small file may hold one again and again, in trees without an end."""

    def __init__(self) -> None:
        self._n = 0

    def add(self) -> None:
        """One more; RestrictedPickleError beyond the limit."""
        self._n += 1
        if self._n > _MOST_MODULES:
            raise RestrictedPickleError(f"it has more than {_MOST_MODULES} modules")


def _tensors(module: Shell, prefix: str, count: _Count) -> Iterator[tuple[str, Tensor]]:
    """The state dict, by the rules of torch.nn.Module."""
    count.add()
    state = module.state
    transient = state.get("_non_persistent_buffers_set") or ()
    for member in ("_parameters", "_buffers"):
        for name, tensor in state[member].items():
            if isinstance(tensor, Tensor) and not (member == "_buffers" and name in transient):
                yield prefix + name, tensor
    for name, child in state["_modules"].items():
        if _is_module(child):
            yield from _tensors(child, f"{prefix}{name}.", count)
    for name, compiled in (state.get("__codegen__") or {}).items():
        if type(compiled) is not bytes:
            raise RestrictedPickleError("compiled code of another e3nn than 0.4")
        for inner, tensor in _of_script(load_tensors(compiled), f"{prefix}{name}.", count):
            yield inner, tensor


def _of_script(module: Any, prefix: str, count: _Count) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module of TorchScript, which keeps all attributes in one mapping."""
    count.add()
    state = module.state if isinstance(module, Shell) else None
    for name, value in (state if isinstance(state, dict) else {}).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Shell):
            yield from _of_script(value, f"{prefix}{name}.", count)


class _Attributes:
    """Attributes, parameters, buffers and submodules of a module in a file; a list of them."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for place in (self._state, *(self._state[member] for member in _MEMBERS)):
            if name in place:
                return _plain(place[name])
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Any]:
        return map(_plain, self._items())

    def __getitem__(self, index: int | slice) -> Any:
        items = self._items()[index]
        return [_plain(item) for item in items] if isinstance(index, slice) else _plain(items)

    def _items(self) -> list[Any]:
        """Those of a ModuleList or a ParameterList."""
        return [*self._state["_modules"].values(), *self._state["_parameters"].values()]


def _plain(value: Any) -> Any:
    """What a shell represents, as far as a header needs it."""
    if isinstance(value, type) and issubclass(value, Shell):  # a class or function
        return SimpleNamespace(__name__=value.name)
    if _is_module(value):
        return _attributes_of(value)
    if isinstance(value, Shell) and value.name == "getattr" and len(value.arguments) == 2:
        owner, name = value.arguments
        if getattr(owner, "name", "") == "_VariableFunctionsClass":  # torch.tanh and such
            return SimpleNamespace(__name__=name)
    if isinstance(value, Shell) and (value.module, value.name) == ("e3nn.o3._irreps", "Irreps"):
        return _Irreps(value)
    return value


def _attributes_of(module: Shell) -> _Attributes:
    """Of a class with the name of the module's, but without its code."""
    if module.module.partition(".")[0] not in _PACKAGES:
        raise RestrictedPickleError(f"it holds a {_name_of(module)}, which is none of mace-torch")
    made: _Attributes = type(module.name, (_Attributes,), {})(module.state)
    return made


class _Irreps:
    """Multiplicities and degrees of e3nn's Irreps, a tuple of (n, (degree, parity))."""

    def __init__(self, shell: Shell) -> None:
        pairs = [item.arguments[0] for item in shell.arguments[0]]
        self._parts = [(int(n), *map(int, irrep.arguments[0])) for n, irrep in pairs]
        self.dim = sum(n * (2 * degree + 1) for n, degree, _ in self._parts)
        self.lmax = max((degree for _, degree, _ in self._parts), default=0)

    def __str__(self) -> str:
        parity = {1: "e", -1: "o"}
        return "+".join(f"{n}x{degree}{parity[p]}" for n, degree, p in self._parts)
