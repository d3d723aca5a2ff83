"""Balanced batches in mace-torch: its data, its loader, its training step, our sampler.

    torchrun --nproc-per-node 2 scripts/examples/mace_torch_loader.py --data A.xyz B.xyz ...

Trains a small MACE of mace-torch for one epoch with each sampler, torch's DistributedSampler as
``mace_run_train --distributed`` uses it and ours, on the same structures, and prints how far apart
the ranks' computing times of a step are. Needs the extra "interop". Without --data: the embedded
example data.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # for e3nn 0.4.4
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import ase.io  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data, modules  # noqa: E402
from mace.modules.loss import WeightedEnergyForcesLoss  # noqa: E402
from mace.tools import AtomicNumberTable, torch_geometric  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.data.distributed import DistributedSampler  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.balance.batch_sampler import BalancedBatchSampler  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.structure import LabelKeys  # noqa: E402

R_MAX = 4.0
KEYS = data.KeySpecification(
    info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"}
)


def dataset(files: list[str], n: int, seed: int) -> tuple[list, AtomicNumberTable]:
    """mace-torch's AtomicData of n structures of the files, and their elements."""
    frames = [atoms for path in files for atoms in _frames(path) if len(atoms) > 1]
    chosen = np.random.default_rng(seed).permutation(len(frames))[:n]
    frames = [frames[i] for i in chosen]
    table = AtomicNumberTable(sorted({int(z) for atoms in frames for z in atoms.numbers}))
    configs = [data.config_from_atoms(atoms, key_specification=KEYS) for atoms in frames]
    return [data.AtomicData.from_config(c, z_table=table, cutoff=R_MAX) for c in configs], table


def _frames(path: str) -> list[ase.Atoms]:
    """Structures of a file; our own example data are read by our own reader."""
    if not path.endswith(".gz"):
        return ase.io.read(path, ":")
    keys = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
    frames = []
    for s in read_structures([path], keys):
        atoms = ase.Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)
        atoms.info["REF_energy"] = s.energy
        atoms.arrays["REF_forces"] = np.zeros_like(s.positions) if s.forces is None else s.forces
        frames.append(atoms)
    return frames


def build_model(table: AtomicNumberTable) -> torch.nn.Module:
    """A small MACE of mace-torch."""
    torch.manual_seed(0)
    return modules.MACE(
        r_max=R_MAX,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=modules.interaction_classes["RealAgnosticInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(table),
        hidden_irreps=o3.Irreps("16x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(table)),
        avg_num_neighbors=20,
        atomic_numbers=table.zs,
        correlation=2,
    )


def step_times(model: torch.nn.Module, loader: torch_geometric.dataloader.DataLoader) -> list:
    """CPU seconds of this rank's computing in every step of an epoch, without waiting."""
    loss_function = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    seconds = []
    for batch in loader:
        optimizer.zero_grad()
        start = time.thread_time()
        output = model(batch.to_dict(), training=True, compute_force=True)
        with model.no_sync():  # gradients are reduced below, so that computing is timed alone
            loss_function(pred=output, ref=batch).backward()
        seconds.append(time.thread_time() - start)
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Over all ranks: slowest over mean computing time, summed over steps; relative deviation."""
    gathered: list[list[float]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, seconds)
    times = np.array(gathered)  # [ranks, steps]
    return {
        "steps": times.shape[1],
        "straggler_ratio": float(times.max(axis=0).sum() / times.mean(axis=0).sum()),
        "deviation_between_steps": float(times.std() / times.mean()),
        "compute_s_of_slowest": float(times.max(axis=0).sum()),
    }


def main() -> dict[str, dict[str, float]]:
    """One epoch with each sampler."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="*", default=[str(EXAMPLE_DATA / "train.extxyz.gz")])
    parser.add_argument("--structures", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    graphs, table = dataset(arguments.data, arguments.structures, seed=0)
    model = DistributedDataParallel(build_model(table), find_unused_parameters=True)
    usual = DistributedSampler(graphs, size, rank, shuffle=True, drop_last=True)
    balanced = BalancedBatchSampler(
        [graph.num_nodes for graph in graphs],
        [graph.num_edges for graph in graphs],
        batch_size=arguments.batch_size,
        world_size=size,
        rank=rank,
    )
    loader = torch_geometric.dataloader.DataLoader
    loaders = {
        "fixed count": loader(graphs, batch_size=arguments.batch_size, sampler=usual),
        "balanced": loader(graphs, batch_sampler=balanced),
    }
    step_times(model, loaders["fixed count"])  # warm up
    result = {name: spread(step_times(model, each)) for name, each in loaders.items()}
    if rank == 0:
        for name, numbers in result.items():
            print(name, {key: round(value, 4) for key, value in numbers.items()})
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    dist.barrier()
    time.sleep(0.1)  # threads of gloo let go of tensors, which destroying would wait for in vain
    dist.destroy_process_group()
    return result


if __name__ == "__main__":
    main()
