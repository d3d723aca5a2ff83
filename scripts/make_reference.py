"""Make tests/model/reference/*.npz: models, structures and results of the installed mace-torch.

    python scripts/make_reference.py [NAME ...]        (needs the extra "interop")

Each file holds the trained tensors of a small float64 model, its header (JSON), structures, and
what mace-torch predicts for them from its own neighbour lists, so that the tests can compare
without mace-torch. Weights are random; the files change only when mace-torch does.
"""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from mace import data  # noqa: E402
from mace.tools import AtomicNumberTable, torch_geometric  # noqa: E402

from mace_train.interop.header import header_of  # noqa: E402
from tests.model.mace_torch import mace_torch_model  # noqa: E402
from tests.model.systems import mixed, salt, single_atom, tiny_cell, water  # noqa: E402

OUTPUT = ROOT / "tests" / "model" / "reference"
BULKY = re.compile(r"U_matrix|output_mask|_w3j_|conv_tp\.weight$")

ALL = tuple(range(1, 90))
INPUTS = ("total_charge", "total_spin")  # in atoms.info; where there is none, mace-torch's default


def with_info(atoms: Atoms, **values: float) -> Atoms:
    """The structure with inputs beside the geometry."""
    atoms.info.update(values)
    return atoms


CASES: dict[str, tuple[tuple[int, ...], list[Atoms], dict[str, Any]]] = {
    "default": ((1, 8, 13), [water(), single_atom(), tiny_cell()], {}),
    "mace": ((11, 17), [salt()], {"flavour": "MACE", "max_ell": 2}),
    "tensors": ((1, 8, 13), [tiny_cell(), water()], {"max_L": 2, "channels": 3}),
    "scalars": ((11, 17), [salt()], {"max_L": 0, "num_interactions": 3, "correlation": 2}),
    "one_layer": ((13,), [tiny_cell()], {"num_interactions": 1, "max_ell": 1, "correlation": 4}),
    "density": (
        (1, 8, 13),
        [water(), tiny_cell()],
        {"first": "RealAgnosticDensity", "interaction": "RealAgnosticDensityResidual"},
    ),
    "nonlinear": (
        (1, 8, 13),
        [water(), single_atom(), tiny_cell()],
        {
            "first": "RealAgnosticResidualNonLinear",
            "interaction": "RealAgnosticResidualNonLinear",
            "edge_irreps": "3x0e+3x1o",
            "use_agnostic_product": True,
            "apply_cutoff": False,
            "readout_cls": "NonLinearBiasReadoutBlock",
            "max_ell": 2,
        },
    ),
    "all_elements": (ALL, [mixed(ALL)], {"max_ell": 1, "channels": 2, "correlation": 2}),
    "inputs": (
        (1, 8, 13),
        [with_info(water(), total_charge=-1, total_spin=2), tiny_cell(), single_atom()],
        {
            "max_ell": 2,
            "embedding_specs": {
                "total_spin": {
                    "type": "categorical",
                    "per": "graph",
                    "num_classes": 4,
                    "emb_dim": 5,
                },
                "total_charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 3},
            },
        },
    ),
}


def predictions(
    model: torch.nn.Module, structures: list[Atoms], numbers: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Energy, forces and stress of mace-torch, through its own data pipeline."""
    torch.set_default_dtype(torch.float64)
    table = AtomicNumberTable(list(numbers))
    cutoff = float(model.r_max)
    keys = data.KeySpecification(info_keys={name: name for name in INPUTS})
    dataset = [
        data.AtomicData.from_config(
            data.config_from_atoms(atoms, key_specification=keys),
            z_table=table,
            cutoff=cutoff,
        )
        for atoms in structures
    ]
    loader = torch_geometric.dataloader.DataLoader(dataset, batch_size=len(dataset))
    result = model(next(iter(loader)).to_dict(), compute_stress=True)
    names = ("energy", "interaction_energy", "node_energy", "forces", "stress")
    return {name: result[name].detach().numpy() for name in names}


def main() -> None:
    """Write all files, or those that are named, and say how large they are."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for seed, (name, (numbers, structures, arguments)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        model = mace_torch_model(numbers, seed=seed, **arguments)
        arrays = {
            f"tensor/{key}": tensor.numpy()
            for key, tensor in model.state_dict().items()
            if tensor.numel() > 0 and not BULKY.search(key)
        }
        for i, atoms in enumerate(structures):
            parts = {"numbers": atoms.numbers, "positions": atoms.positions}
            parts |= {"cell": atoms.cell[:], "pbc": atoms.pbc}
            parts |= {name: atoms.info[name] for name in INPUTS if name in atoms.info}
            arrays |= {f"structure/{i}/{key}": value for key, value in parts.items()}
        results = predictions(model, structures, numbers)
        arrays |= {f"result/{key}": value for key, value in results.items()}
        path = OUTPUT / f"{name}.npz"
        np.savez_compressed(path, header=np.array(json.dumps(header_of(model))), **arrays)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
