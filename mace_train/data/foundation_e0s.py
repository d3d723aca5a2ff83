"""E0s of a foundation model: one of mace-torch, or one that was trained here.

mace-torch saves whole Python objects, and loading them runs code that the file names. Here only the
tensors are taken out (restricted_pickle.py): nothing is run, and mace-torch need not be installed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from mace_train.errors import InputError
from mace_train.foundation_models.lookup import check_licence, model_file, named
from mace_train.json_files import converted
from mace_train.restricted_pickle import RestrictedPickleError, load_tensors
from mace_train.settings.ranges import ATOMIC_ENERGY

if TYPE_CHECKING:
    from torch import Tensor


def foundation_E0s(model: str, accept_licence: str | None = None) -> dict[int, float]:
    """E0s (eV, by atomic number) of mace-torch's ``.model`` file or a training's output folder.

    Or of a foundation model by its name, under a licence that ``accept_licence`` names if need be.

    Raises:
        InputError: the file is not there, is no such model, or has several heads.
    """
    by_name = named("data.foundation_model", model)
    check_licence(by_name, accept_licence, "data.accept_licence")
    path = Path(model) if by_name is None else model_file(by_name)
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
            f"data.foundation_model={path}: element {str(wrong[0])[:20]} is none, is listed twice, "
            f"or has no finite E0, {ATOMIC_ENERGY}; give E0s as a mapping instead"
        )
    return dict(pairs)


def _of_checkpoint(path: Path) -> list[tuple[int, float]]:
    """From the header inside the file, whose checksum is verified."""
    from mace_train import checkpoint_files  # which imports PyTorch

    _, header = checkpoint_files.read(path)
    with checkpoint_files.reading(path):
        data = converted(dict[str, Any], header["model_data"], "model_data")
        # older files have one head and no list
        heads = converted(list[dict[str, Any]], data.get("heads") or [data], "heads")
        elements = converted(list[int], data["atomic_numbers"], "atomic_numbers")
        energies = converted(list[float], heads[0]["E0s"], "E0s")
        names = [converted(str, head.get("name", "Default"), "name") for head in heads]
        pairs = list(zip(elements, energies, strict=True))
    if len(heads) > 1:
        raise InputError(
            f"data.foundation_model={path} has the heads {', '.join(names)}; give E0s as a mapping "
            "instead"
        )
    return pairs


def _of_mace_torch(path: Path) -> list[tuple[int, float]]:
    try:
        state = load_tensors(path).state
        elements = _whole_numbers(state["_buffers"]["atomic_numbers"])
        block = state["_modules"]["atomic_energies_fn"].state
        energies = block["_buffers"]["atomic_energies"].double().reshape(-1, len(elements))
    except (
        OSError,
        RestrictedPickleError,
        RuntimeError,
        ValueError,
        LookupError,
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


def _whole_numbers(atomic_numbers: "Tensor") -> list[int]:
    """The numbers in a tensor that has one for each element; ``ValueError`` for others."""
    if atomic_numbers.dim() == 0 or atomic_numbers.numel() >= len(chemical_symbols):
        raise ValueError(f"atomic_numbers of shape {tuple(atomic_numbers.shape)}")
    numbers = atomic_numbers.flatten().tolist()
    for number in numbers:
        if isinstance(number, bool) or number % 1 != 0:
            raise ValueError(f"the atomic number {number}")
    return [int(number) for number in numbers]
