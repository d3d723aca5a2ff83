"""E0s of a foundation model: one of mace-torch, or one that was trained here.

mace-torch saves whole Python objects, and loading them runs code that the file names. Here only the
tensors are taken out (restricted_pickle.py): nothing is run, and mace-torch need not be installed.
"""

import json
from pathlib import Path

from ase.data import chemical_symbols

from mace_train.errors import InputError
from mace_train.restricted_pickle import RestrictedPickleError, load_tensors
from mace_train.settings.ranges import ATOMIC_ENERGY


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
    pairs = _of_checkpoint(path) if path.suffix == ".safetensors" else _of_mace_torch(path)
    elements = [z for z, _ in pairs]
    wrong = [z for z in elements if not 1 <= z < len(chemical_symbols)]
    wrong += [z for z in set(elements) if elements.count(z) > 1] if not wrong else []
    wrong += [z for z, energy in pairs if not ATOMIC_ENERGY.holds(energy)]
    if wrong:
        raise InputError(
            f"data.foundation_model={path}: element {wrong[0]} is none, is listed twice, or has no "
            f"finite E0, {ATOMIC_ENERGY}; give E0s as a mapping instead"
        )
    return dict(pairs)


def _of_checkpoint(path: Path) -> list[tuple[int, float]]:
    try:
        content = json.loads(path.with_suffix(".json").read_text())
        data = content["model_data"]
        heads = data.get("heads") or [data]  # older files have one head and no list
        pairs = zip(data["atomic_numbers"], heads[0]["E0s"], strict=True)
        found = [(int(z), float(energy)) for z, energy in pairs]
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


def _of_mace_torch(path: Path) -> list[tuple[int, float]]:
    try:
        state = load_tensors(path).state
        elements = [int(z) for z in state["_buffers"]["atomic_numbers"][:200]]
        block = state["_modules"]["atomic_energies_fn"].state
        energies = block["_buffers"]["atomic_energies"].double().reshape(-1, len(elements))
    except (
        OSError,
        RestrictedPickleError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
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
    return list(zip(elements, energies[0].tolist(), strict=True))
