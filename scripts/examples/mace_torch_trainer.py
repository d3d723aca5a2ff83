"""Shards in the training loop of mace-torch, in place of its HDF5Dataset.

pip install 'mace-train[interop]'
python scripts/examples/mace_torch_trainer.py DATA_DIR OUTPUT
"""

import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # for e3nn 0.4.4

import numpy as np
import torch
from e3nn import o3
from mace import modules, tools
from mace.tools import torch_geometric

from mace_train.data.adapters.mace_torch import MaceDataset
from mace_train.data.shards import ShardSet
from mace_train.data.statistics import Statistics


def make_model(statistics: Statistics) -> torch.nn.Module:
    """A small model of mace-torch for the data."""
    numbers = statistics.atomic_numbers
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=statistics.r_max,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps("8x0e"),
        MLP_irreps=o3.Irreps("8x0e"),
        atomic_energies=np.array([statistics.E0s[z] for z in numbers]),
        avg_num_neighbors=statistics.avg_num_neighbors,
        atomic_numbers=numbers,
        correlation=2,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=statistics.rms_forces,
        atomic_inter_shift=statistics.mean_energy_per_atom,
        radial_MLP=[16],
    )


def main() -> None:
    """Train two epochs with ``mace.tools.train``."""
    data_dir, output = Path(sys.argv[1]), Path(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    statistics = Statistics.read(data_dir / "statistics.json")
    z_table = tools.AtomicNumberTable(statistics.atomic_numbers)
    loaders = {
        name: torch_geometric.dataloader.DataLoader(
            MaceDataset(ShardSet(data_dir / name), z_table), batch_size=4, shuffle=name == "train"
        )
        for name in ("train", "valid")
    }
    model = make_model(statistics)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tools.train(
        model=model,
        loss_fn=modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0),
        train_loader=loaders["train"],
        valid_loaders={"Default": loaders["valid"]},
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=50),
        start_epoch=0,
        max_num_epochs=2,
        patience=10,
        checkpoint_handler=tools.CheckpointHandler(directory=str(output), tag="example"),
        logger=tools.MetricsLogger(directory=str(output), tag="example"),
        eval_interval=1,
        output_args={"forces": True, "virials": False, "stress": False},
        device=torch.device("cpu"),
        log_errors="PerAtomRMSE",
    )


if __name__ == "__main__":
    main()
