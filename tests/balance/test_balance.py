"""The report of ``mace-train balance``, on shards and on sizes alone."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from mace_train.balance.balance import balance, compare, other_capacities
from mace_train.balance.cost_model import CostModel
from mace_train.balance.costs import Costs, derive_capacity
from mace_train.balance.packers import PACKERS
from mace_train.balance.simulate import Cluster, Fabric
from mace_train.data.preprocess.preprocess import preprocess
from mace_train.errors import InputError
from mace_train.settings import BalanceSettings, BatchingSettings, DataSettings, PreprocessSettings
from tests.balance.sizes import paper_like


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """A preprocessed folder of 30 chains of 1 to 10 atoms, 1 Å apart, r_max 1.5 Å."""
    folder = tmp_path_factory.mktemp("chains")
    chains = []
    for n_atoms in [1 + i % 10 for i in range(30)]:
        atoms = Atoms(f"H{n_atoms}", positions=[(i, 0, 0) for i in range(n_atoms)])
        atoms.info["REF_energy"] = 0.0
        chains.append(atoms)
    write(folder / "chains.xyz", chains, format="extxyz")
    data = DataSettings(
        train_file=str(folder / "chains.xyz"),
        valid_fraction=0.0,
        E0s={1: 0.0},
        keep_isolated_atoms=True,
    )
    return preprocess(PreprocessSettings(data=data, r_max=1.5, output=str(folder / "data")))


def test_report_on_shards(chains, tmp_path, capsys):
    settings = BalanceSettings(
        data_dir=str(chains),
        gpus=2,
        gap_instances=1,
        output=str(tmp_path / "out"),
        batching=BatchingSettings(batch_size=5),
    )
    report = balance(settings)
    assert json.loads((tmp_path / "out" / "balance.json").read_text()) == report
    for name in ("balance.png", "scaling.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in PACKERS)
    assert "straggler ratio" in printed
    assert "Optimality gap of balanced on 1 small draws" in " ".join(printed.split())
    assert 0.0 <= report["optimality_gap"]["worst"] < 0.05
    # three times chains of 1 ... 10 atoms, with two edges per bond
    assert (report["structures"], report["atoms"], report["edges"]) == (30, 165, 270)
    assert report["packers"]["algorithm1"]["steps"] == 3
    assert report["packers"]["fixed_count"]["steps"] == 3
    assert report["packers"]["algorithm1"]["bins_over_capacity"] == 0
    assert report["packers"]["algorithm1"]["structures_per_step"]["mean"] == 10.0


def test_nothing_is_written_without_an_output(chains, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    balance(BalanceSettings(data_dir=str(chains), gpus=3, gap_instances=0))
    assert list(tmp_path.iterdir()) == []
    assert "30 structures" in capsys.readouterr().out


CLUSTER = Cluster(CostModel(0.5, 1.0, 0.0), Fabric("none", 1e9, 0.0), 0.0)


def test_numbers_by_hand():
    # sorted sizes 4 | 2 1 1 on two GPUs: one step, 4 against 4 atoms; no edges, no jitter matters
    costs = Costs(np.array([1, 4, 1, 2]), np.zeros(4, np.int64))
    entries = compare(costs, BatchingSettings(batch_size=2), 2, 0, CLUSTER)
    numbers = {entry.packer: entry.numbers() for entry in entries}
    for packer in ("balanced", "algorithm1"):
        assert numbers[packer]["steps"] == numbers[packer]["least_steps"] == 1
        assert numbers[packer]["straggler"] == numbers[packer]["least_straggler"] == 1.0
        assert numbers[packer]["largest_bin_atoms"] == 4
        assert numbers[packer]["fill_atoms"] == pytest.approx(4 / 5)  # of 1.1 * 2 * 2 atoms
        assert numbers[packer]["predicted"]["epoch_s"] == 4.5
        assert numbers[packer]["predicted"]["waiting_s"] == 0.0
    # two of two: the 4 shares its bin with 1 or 2, so the ranks differ
    assert numbers["fixed_count"]["straggler"] in (5 / 4, 6 / 4)
    assert numbers["fixed_count"]["predicted"]["waiting_s"] in (1.0, 2.0)
    assert numbers["fixed_count"]["structures_per_step"] == {"min": 4, "mean": 4.0, "max": 4}


def test_packers_are_measured_against_one_capacity():
    batching = BatchingSettings(batch_size=12, max_atoms=1000)
    entries = {e.packer: e for e in compare(paper_like(2000), batching, 8, 0, CLUSTER)}
    assert entries["balanced"].capacity == entries["fixed_count"].capacity
    assert entries["balanced"].numbers()["bins_over_capacity"] == 0
    assert entries["fixed_count"].numbers()["bins_over_capacity"] > 0
    assert entries["balanced"].plan.straggler < entries["fixed_count"].plan.straggler


def test_other_capacities_show_the_trade():
    costs = paper_like(4000)
    capacity = derive_capacity(costs, 1, 3000, None)
    rows = other_capacities(costs, "balanced", capacity, 4, 0, CLUSTER)
    assert [row["factor"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0]
    assert rows[0]["max_atoms"] == 768  # the largest structure
    steps = [row["steps"] for row in rows]
    assert steps == sorted(steps, reverse=True)


def test_missing_split_and_small_capacity_are_named(chains):
    with pytest.raises(InputError, match="valid"):
        balance(BalanceSettings(data_dir=str(chains), split="valid"))
    too_small = BatchingSettings(max_atoms=9)
    with pytest.raises(InputError, match="structure 9 has 10 atoms"):
        balance(BalanceSettings(data_dir=str(chains), batching=too_small))
