"""E0s of a foundation model: one of mace-torch, or one that was trained here.

mace-torch saves whole Python objects, and loading them runs the code in the file. Here only the
tensors are taken out: every class in the file but those of tensors becomes an empty placeholder, so
nothing is run and mace-torch need not be installed.
"""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mace_train.errors import InputError

_SAFE_MODULES = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
}


class _Placeholder:
    """Replaces an object of any class: keeps its state, runs none of its code."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **keywords: Any) -> "_Placeholder":
        return _Placeholder()

    def append(self, item: Any) -> None:
        """Take an item of a list or set that the class extends."""

    def extend(self, items: Any) -> None:
        """Take items of a list that the class extends."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item of a mapping that the class extends."""


def foundation_E0s(model: str) -> dict[int, float]:
    """E0s (eV, by atomic number) of mace-torch's ``.model`` file or a training's output folder.

    Raises:
        InputError: the file is not there, is no such model, or has several heads.
    """
    path = Path(model)
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
    if not path.exists():
        raise InputError(f"data.foundation_model={model}: {path} is not there; correct the path")
    return _E0s_of_checkpoint(path) if path.suffix == ".safetensors" else _E0s_of_mace_torch(path)


def _E0s_of_checkpoint(path: Path) -> dict[int, float]:
    try:
        content = json.loads(path.with_suffix(".json").read_text())
        data = content["model_data"]
        heads = data.get("heads") or [data]  # older files have one head and no list
        pairs = zip(data["atomic_numbers"], heads[0]["E0s"], strict=True)
        found = {int(z): float(energy) for z, energy in pairs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"data.foundation_model={path}: no E0s in the JSON beside it ({error!r}); give the "
            "output folder of a training"
        ) from error
    if len(heads) > 1:
        names = ", ".join(head["name"] for head in heads)
        raise InputError(
            f"data.foundation_model={path} has the heads {names}; give E0s as a mapping instead"
        )
    return found


def _E0s_of_mace_torch(path: Path) -> dict[int, float]:
    import torch

    class Pickle:
        """What torch.load calls in place of the module pickle."""

        class Unpickler(pickle.Unpickler):
            """Makes tensors, and placeholders for everything else."""

            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in _SAFE_MODULES:
                    return _SAFE_MODULES[module, name]
                is_tensor = module in ("torch._utils", "torch.storage") and name.startswith(
                    ("_rebuild_tensor", "_rebuild_parameter", "UntypedStorage", "TypedStorage")
                )
                if is_tensor or (
                    module == "torch"
                    and (
                        name.endswith("Storage")
                        or name in ("Size", "device")
                        or isinstance(getattr(torch, name, None), torch.dtype)
                    )
                ):
                    return super().find_class(module, name)
                return _Placeholder

        load = staticmethod(pickle.load)

    try:
        loaded = torch.load(path, map_location="cpu", pickle_module=Pickle, weights_only=False)
        buffers = loaded.state["_buffers"]
        elements = buffers["atomic_numbers"].tolist()
        block = loaded.state["_modules"]["atomic_energies_fn"]
        energies = (
            block.state["_buffers"]["atomic_energies"].to(torch.float64).reshape(-1, len(elements))
        )
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(
            f"data.foundation_model={path}: no model of mace-torch ({type(error).__name__}: "
            f"{error}); give a .model file or the output folder of a training"
        ) from error
    if len(energies) > 1:
        raise InputError(
            f"data.foundation_model={path} has {len(energies)} heads; select one first "
            "(mace_select_head)"
        )
    return dict(zip(elements, energies[0].tolist(), strict=True))
