"""Draw README's picture from the output of scripts/quickstart.sh.

    python scripts/plot_quickstart.py quickstart quickstart/quickstart.png

Left: atoms in every bin of an epoch on 8 GPUs, by packer. Middle: the learning curve. Right:
predicted against reference force components of the test structures.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ase.io import read
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mace_train.balance.costs import Costs, capacity_of
from mace_train.balance.packers import PACKERS
from mace_train.balance.plan import make_plan
from mace_train.data.shards.shard_set import ShardSet
from mace_train.settings import BatchingSettings

N_GPUS = 8


def main() -> None:
    """Read the folder named first, write the picture named second."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: plot_quickstart.py FOLDER PICTURE")
    folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_bins(left, folder / "data")
    draw_learning(middle, folder / "run" / "metrics.jsonl")
    draw_forces(right, folder / "test")
    figure.savefig(picture, dpi=130)
    print(f"wrote {picture}")


def draw_bins(axes: Axes, data: Path) -> None:
    """Cost of every bin of an epoch, sorted, for each packer."""
    shards = ShardSet(data / "train")
    costs = Costs(shards.n_atoms, shards.n_edges)
    for packer in PACKERS:
        capacity = capacity_of(costs, BatchingSettings(packer=packer, batch_size=10))
        plan = make_plan(costs, packer, capacity, world_size=N_GPUS, seed=123, epoch=0)
        loads = np.sort(plan.bin_costs.ravel())[::-1]
        label = f"{packer}: straggler ratio {plan.straggler:.2f}"
        axes.step(np.arange(len(loads)), loads, where="post", label=label)
    axes.set(xlabel="bins of one epoch, heaviest first", ylabel="atoms + edges / 30")
    axes.set_title(f"work per GPU and step, {N_GPUS} GPUs")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def draw_learning(axes: Axes, path: Path) -> None:
    """Validation errors over epochs."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    epochs = [record["epoch"] + 1 for record in records]
    series = {
        "forces, meV/Å": "valid_forces_rmse_eV_per_A",
        "energy, meV/atom": "valid_energy_rmse_eV_per_atom",
        "stress, meV/Å³": "valid_stress_rmse_eV_per_A3",
    }
    for label, key in series.items():
        axes.semilogy(epochs, [1000 * record[key] for record in records], label=label)
    axes.set(xlabel="epoch", ylabel="validation RMSE", title="learning")
    axes.legend(fontsize="small")


def draw_forces(axes: Axes, folder: Path) -> None:
    """Parity of force components on structures that training has not seen."""
    structures = read(folder / "predictions.extxyz", ":")
    reference = np.concatenate([a.arrays["REF_forces"].ravel() for a in structures])
    predicted = np.concatenate([a.arrays["MACE_forces"].ravel() for a in structures])
    rmse = 1000 * np.sqrt(np.mean((predicted - reference) ** 2))
    rms = 1000 * np.sqrt(np.mean(reference**2))
    limit = 1.05 * np.abs(np.concatenate([reference, predicted])).max()
    drawn = axes.hexbin(reference, predicted, gridsize=70, bins="log", mincnt=1)
    axes.figure.colorbar(drawn, ax=axes, label="components")
    axes.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="reference force (eV/Å)", ylabel="predicted force (eV/Å)", aspect="equal")
    axes.set_title(f"test forces: RMSE {rmse:.0f} of {rms:.0f} meV/Å RMS")


if __name__ == "__main__":
    main()
