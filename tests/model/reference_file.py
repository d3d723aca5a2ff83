"""Reading the files that scripts/make_reference.py made with mace-torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

FOLDER = Path(__file__).parent / "reference"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclass
class Reference:
    """One model of mace-torch, structures, and what it predicts for them."""

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    structures: list[Atoms]
    results: dict[str, torch.Tensor]


def read_reference(name: str) -> Reference:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        groups: dict[str, dict[str, np.ndarray]] = {"tensor": {}, "structure": {}, "result": {}}
        for key in set(arrays) - {"header"}:
            group, _, rest = key.partition("/")
            groups[group][rest] = arrays[key]
        header = json.loads(str(arrays["header"]))
    parts = groups["structure"]
    structures = [
        Atoms(**{k: parts[f"{i}/{k}"] for k in ("numbers", "positions", "cell", "pbc")})
        for i in range(len({key.split("/")[0] for key in parts}))
    ]
    for i, atoms in enumerate(structures):
        names = ("total_charge", "total_spin")
        atoms.info = {k: float(parts[f"{i}/{k}"]) for k in names if f"{i}/{k}" in parts}
    return Reference(
        header,
        {key: torch.as_tensor(value) for key, value in groups["tensor"].items()},
        structures,
        {key: torch.as_tensor(value) for key, value in groups["result"].items()},
    )
