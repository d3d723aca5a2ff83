"""Run by an older mace-torch: it saves a model with random weights, and what the model predicts.

    python save_old_model.py FOLDER

FOLDER/positions.npy are those of H, C, O and H; there are then old.model and found.npz.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main(folder: Path) -> None:
    """Build, predict, save."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    from mace import modules

    knows_heads = "heads" in inspect.signature(modules.MACE.__init__).parameters
    model = modules.ScaleShiftMACE(**arguments(modules, knows_heads))
    torch.save(model, folder / "old.model")
    found = model(batch(np.load(folder / "positions.npy"), knows_heads))
    values = {name: found[name].detach().numpy() for name in ("energy", "forces")}
    np.savez(folder / "found.npz", **values)


def arguments(modules: Any, knows_heads: bool) -> dict[str, Any]:
    """Of a small ScaleShiftMACE, with density blocks where there are some."""
    from e3nn import o3

    blocks = modules.interaction_classes
    residual = blocks["RealAgnosticResidualInteractionBlock"]
    E0s, scale, shift = [-10.0, -60.0, -80.0], 0.8, 0.1
    of_heads = {
        "heads": ["pbe"],
        "atomic_energies": np.array([E0s]),
        "atomic_inter_scale": [scale],
        "atomic_inter_shift": [shift],
    }
    return {
        "r_max": 4.0,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": residual,
        "interaction_cls_first": blocks.get("RealAgnosticDensityInteractionBlock", residual),
        "num_interactions": 2,
        "num_elements": 3,
        "hidden_irreps": o3.Irreps("4x0e+4x1o"),
        "MLP_irreps": o3.Irreps("5x0e"),
        "atomic_energies": np.array(E0s),
        "avg_num_neighbors": 7.3,
        "atomic_numbers": [1, 6, 8],
        "correlation": 2,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [8, 8],
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        "atomic_inter_scale": scale,
        "atomic_inter_shift": shift,
        **(of_heads if knows_heads else {}),
    }


def batch(positions: Any, knows_heads: bool) -> Any:
    """What the model's forward takes."""
    from ase import Atoms
    from mace import data
    from mace.tools import torch_geometric, utils

    config = data.config_from_atoms(Atoms("HCOH", positions=positions))
    more = {}
    if knows_heads:
        config.head = "pbe"
        more["heads"] = ["pbe"]
    table = utils.AtomicNumberTable([1, 6, 8])
    graph = data.AtomicData.from_config(config, z_table=table, cutoff=4.0, **more)
    return next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1))).to_dict()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
