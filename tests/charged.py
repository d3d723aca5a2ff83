"""Structures with inputs beside the geometry, and the specification of a model that takes them."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

from mace_train.settings.inputs import input_specs

ELEMENTS = (1, 6, 8)
SPECS: dict[str, dict[str, Any]] = {
    "total_charge": {
        "type": "categorical",
        "per": "graph",
        "num_classes": 5,
        "offset": 2,
        "emb_dim": 6,
    },
    "temperature": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 5, "key": "T"},
    "site": {"type": "categorical", "per": "atom", "num_classes": 3, "emb_dim": 4},
    "shielding": {
        "type": "continuous",
        "per": "atom",
        "in_dim": 1,
        "emb_dim": 3,
        "use_bias": False,
        "default": 0.5,
    },
}
INPUTS = input_specs(SPECS)
READ = (  # settings of preprocess
    "data.info_keys={total_charge: charge, temperature: T}",
    "data.arrays_keys=[site, shielding]",
    "data.input_defaults={shielding: 0.5}",
)


def charged(i: int) -> Atoms:
    """Water, methane or carbon dioxide, whose energy follows its charge."""
    random = np.random.default_rng(i)
    atoms = molecule(["H2O", "CH4", "CO2"][i % 3])
    atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
    charge = (i // 3) % 3 - 1
    atoms.info = {"REF_energy": -10.0 * sum(atoms.numbers) + 3.0 * charge, "T": 0.1 * i}
    if charge or i % 2:
        atoms.info["charge"] = charge
    atoms.arrays["REF_forces"] = random.normal(scale=0.1, size=atoms.positions.shape)
    atoms.arrays["site"] = np.arange(len(atoms)) % 3
    if i % 4:
        atoms.arrays["shielding"] = random.normal(size=len(atoms))
    return atoms
