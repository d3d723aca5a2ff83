"""adapters: the same structures and edges in the types of other libraries; the examples run."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mace_train.data.adapters.mace_torch import MaceDataset
from mace_train.data.adapters.pyg import PyGDataset
from mace_train.data.shards.shard_set import ShardSet, sample_of, shard_path, write_shard
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError
from tests.data.factories import KEYS, crystal

EXAMPLES = Path(__file__).parents[3] / "scripts" / "examples"


@pytest.fixture
def shards(prepared) -> ShardSet:
    return ShardSet(prepared / "train")


def test_pyg(shards):
    geometric = pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    dataset = PyGDataset(shards, dtype=torch.float64)
    batch = geometric.data.Batch.from_data_list([dataset[i] for i in range(len(shards))])
    assert batch.num_edges == shards.n_edges.sum()
    assert batch.num_nodes == shards.n_atoms.sum()
    senders, receivers = batch.edge_index
    images = torch.einsum("es,esc->ec", batch.shifts, batch.cell[batch.batch[senders]])
    distances = (batch.pos[receivers] - batch.pos[senders] + images).norm(dim=1)
    assert 0.5 < float(distances.min()) < float(distances.max()) < shards.r_max
    for i, energy in enumerate(batch.energy.tolist()):
        assert energy == shards.sample(i).structure.energy
        assert bool(batch.has_stress[i]) == (shards.sample(i).structure.stress is not None)


def mace():
    """mace-torch, or a skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mace.data", reason="mace-torch is not installed")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore")
def test_mace_torch_gets_what_it_would_make_itself(shards):
    data = mace()
    from mace.tools import AtomicNumberTable

    table = AtomicNumberTable(list(shards.elements))
    dataset = MaceDataset(shards, table)
    for i in range(len(shards)):
        s = shards.sample(i).structure
        weights = {"energy": s.energy_weight, "forces": s.forces_weight, "virials": 0.0}
        weights["stress"] = s.stress_weight * (s.stress is not None)
        labels = {"energy": s.energy, "forces": s.forces, "stress": s.stress}
        theirs = data.AtomicData.from_config(
            data.Configuration(
                atomic_numbers=s.numbers,
                positions=s.positions,
                properties={k: v for k, v in labels.items() if v is not None},
                property_weights=weights,
                cell=s.cell,
                pbc=tuple(s.pbc.tolist()),
            ),
            z_table=table,
            cutoff=shards.r_max,
        )
        ours = dataset[i]
        assert set(ours.keys) == set(theirs.keys)
        order = {
            name: np.lexsort((*d.unit_shifts.numpy().T, *d.edge_index.numpy()))
            for name, d in (("ours", ours), ("theirs", theirs))
        }
        for key in theirs.keys:
            a, b = ours[key], theirs[key]
            if isinstance(b, int):
                assert a == b, key
                continue
            if key in ("edge_index", "shifts", "unit_shifts"):
                axis = 1 if key == "edge_index" else 0
                a = a.index_select(axis, torch.from_numpy(order["ours"]))
                b = b.index_select(axis, torch.from_numpy(order["theirs"]))
            assert a.dtype == b.dtype, key
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore")
def test_mace_torch_gets_no_stress_of_slabs(tmp_path):
    """It would train the components that are not defined to zero."""
    mace()
    from mace.tools import AtomicNumberTable

    atoms = crystal()
    full = structure_from_atoms(atoms, KEYS, "full")
    atoms.pbc = [True, True, False]
    slab = structure_from_atoms(atoms, KEYS, "slab")
    assert slab.stress is not None
    write_shard(shard_path(tmp_path, 0), [sample_of(s, 3.0) for s in (full, slab)], 3.0)
    dataset = MaceDataset(ShardSet(tmp_path), AtomicNumberTable([29]))
    weights = [float(dataset[i].stress_weight) for i in range(2)]
    assert weights == [1.0, 0.0]
    assert not dataset[1].stress.any()


@pytest.mark.filterwarnings("ignore")
def test_mace_torch_models_that_do_not_fit(shards):
    mace()
    from mace.tools import AtomicNumberTable

    with pytest.raises(InputError, match=r"the model lacks the elements \[13\]"):
        MaceDataset(shards, AtomicNumberTable([1, 7, 8]))
    with pytest.raises(InputError, match=r"heads \['Default'\] are not among the model's"):
        MaceDataset(shards, AtomicNumberTable([1, 7, 8, 13]), heads=["pbe"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "needs"),
    [("plain_pytorch", "torch"), ("pytorch_geometric", "torch_geometric")],
)
def test_examples_learn(name, needs, prepared, monkeypatch, capsys):
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    monkeypatch.setattr(sys, "argv", [name, str(prepared)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    losses = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0]


def test_example_of_mace_torch(prepared, tmp_path):
    mace()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "mace_torch_trainer.py"), str(prepared), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    losses = [line for line in done.stdout.splitlines() if "RMSE_F" in line]
    assert "Epoch 1" in losses[-1]
