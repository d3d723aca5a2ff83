"""preprocess: heads, invalid structures, kinds of storage, dry run, foundation models, workers."""

import importlib
import json

import ase.io
import numpy as np
import pytest

from mace_train.data.preprocess.preprocess import preprocess
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import open_split
from mace_train.errors import InputError
from mace_train.settings import DataSettings, PreprocessSettings
from tests.conftest import run_command
from tests.data.factories import (
    E_H,
    E_O,
    atoms_of_molecules,
    crystal,
    isolated,
    molecule,
    molecules,
    run,
    statistics_in,
    write_xyz,
)


def of_head(atoms, head, shift=0.0):
    atoms.info["head"] = head
    atoms.info["REF_energy"] += shift
    return atoms


def test_heads_of_files_and_of_structures(tmp_path):
    pbe = write_xyz(tmp_path / "pbe.xyz", [*molecules(10), *atoms_of_molecules()])
    other = [of_head(m, "scan", 5.0) for m in (*molecules(6), *atoms_of_molecules())]
    mixed = write_xyz(tmp_path / "mixed.xyz", [*molecules(4), *other])
    files = {"pbe": pbe, "hf": [mixed]}
    E0s = {"pbe": None, "hf": "average", "scan": {"H": E_H + 5, "O": E_O + 5}}
    output = run(tmp_path, None, train_file=files, E0s=E0s, valid_fraction=0.25)
    statistics = statistics_in(output)
    assert {k: v.n_structures for k, v in statistics.heads.items()} == {
        "hf": 3,
        "pbe": 7,
        "scan": 4,
    }
    assert statistics.heads["pbe"].E0s == {1: E_H, 8: E_O}
    assert statistics.heads["scan"].E0s == {1: E_H + 5, 8: E_O + 5}
    sources = {head: of.E0s_source for head, of in statistics.heads.items()}
    assert sources == {"hf": "average", "pbe": "isolated", "scan": "given"}
    shards = open_split(output, "train")
    assert shards.heads == ["hf", "pbe", "scan"]
    for head, of in statistics.heads.items():
        mine = [s for s in (shards.sample(i).structure for i in range(14)) if s.head == head]
        per_atom = [(s.energy - sum(of.E0s[z] for z in s.numbers.tolist())) / 2 for s in mine]
        assert of.mean_energy_per_atom == pytest.approx(np.mean(per_atom), rel=1e-9, abs=1e-9)
        assert of.std_energy_per_atom == pytest.approx(np.std(per_atom, ddof=1), rel=1e-6)
    valid = open_split(output, "valid")
    assert sorted(valid.sample(i).structure.head for i in range(len(valid))) == (
        ["hf"] + ["pbe"] * 3 + ["scan"] * 2
    )
    with pytest.raises(InputError, match=r"for the heads pbe, hf, but .* of the head scan"):
        run(tmp_path, None, train_file=files, E0s={"pbe": None, "hf": "average"}, name="again")


def broken_structures():
    """One of every kind that can stand in a file."""
    nan, shape, here, far = molecule(), molecule(), molecule(), molecule()
    nan.info["REF_energy"] = float("nan")
    shape.arrays["REF_forces"] = shape.arrays["REF_forces"][:, :2].copy()
    here.positions[:] = 0
    far.positions[0] = np.inf
    flat = crystal()
    flat.set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    bare = molecule()
    del bare.info["REF_energy"]
    return {
        "label not finite": nan,
        "shape of a label": shape,
        "coincident atoms": here,
        "position not finite": far,
        "singular cell": flat,
        "no energy": bare,
    }


def test_invalid_structures_are_left_out_if_asked(tmp_path, caplog):
    broken = broken_structures()
    structures = [*molecules(9), *broken.values(), *atoms_of_molecules()]
    path = write_xyz(tmp_path / "train.xyz", structures)
    with open(path, "a") as file:
        file.write("1\nREF_energy=-1.0\nH zero zero zero\n")
    settings = {"train_file": path, "valid_fraction": 0, "structures_per_shard": 4}
    with pytest.raises(InputError, match="structure 9: 'REF_energy' is not finite"):
        run(tmp_path, None, **settings)
    output = run(tmp_path, None, skip_invalid=True, **settings)
    assert len(ShardSet(output / "train")) == 9
    lines = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [*broken, "unreadable"]
    for i, line in enumerate(lines[:-1]):
        assert line["source"] == f"{path}, structure {9 + i}"
        assert line["source"] in line["reason"]
        (tmp_path / "reject.xyz").write_text(line["extxyz"])
        again = ase.io.read(tmp_path / "reject.xyz")
        np.testing.assert_array_equal(again.positions, structures[9 + i].positions)
    assert lines[-1]["extxyz"] == "1\nREF_energy=-1.0\nH zero zero zero\n"
    assert "7 invalid structures left out: 1 label not finite, 1 shape of a label" in caplog.text
    # without the permission the former run's parts do not hide them
    with pytest.raises(InputError, match="structure 9"):
        run(tmp_path, None, overwrite=True, **settings)


STORED = [*molecules(7), crystal(), crystal(-8.1)]


@pytest.mark.parametrize(
    "storage",
    [
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"store_edges": False},
        {"float32": ["forces"]},
    ],
    ids=str,
)
def test_all_storage_options_hold_the_same(tmp_path, storage):
    settings = {"E0s": "average", "valid_fraction": 0, "structures_per_shard": 4}
    plain = run(tmp_path, STORED, name="plain", **settings)
    other = run(tmp_path, STORED, name="other", **settings, **storage)
    left, right = ShardSet(plain / "train"), ShardSet(other / "train")
    right.verify()
    if "compression" in storage:
        assert left.dataset_hash == right.dataset_hash
    order = np.array([3, 4, 5, 0, 8])
    for a, b in (
        (left.batch(order), right.batch(order)),
        (left.batch(order[:0]), right.batch(order[:0])),
    ):
        for name in vars(a):
            if name != "rows":
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for name in ("energy", "cell", "stress", "weights", "n_atoms_with_neighbors"):
            np.testing.assert_array_equal(a.rows[name], b.rows[name])
    for i in range(len(left)):
        a, b = left.sample(i), right.sample(i)
        np.testing.assert_array_equal(a.structure.forces, b.structure.forces)
        np.testing.assert_array_equal(a.edges.shifts, b.edges.shifts)
    one, two = statistics_in(plain), statistics_in(other)
    assert one.avg_num_neighbors == two.avg_num_neighbors
    assert one.heads == two.heads


def test_single_precision_is_rounded_before_edges_are_found(tmp_path):
    """An edge is there if it is there in what is stored."""
    edge = 2.99999999  # below r_max in double, not in single precision
    pair = [molecule(distance=1.0), molecule(distance=edge)]
    counts = {}
    for name, float32 in (("double", []), ("single", ["positions"])):
        output = run(tmp_path, pair, name=name, E0s="average", valid_fraction=0, float32=float32)
        shards = ShardSet(output / "train")
        counts[name] = shards.n_edges.tolist()
        assert shards.batch(np.arange(2)).positions.dtype == ("f4" if float32 else "f8")
    assert counts == {"double": [2, 2], "single": [2, 0]}
    no_edges = run(tmp_path, pair, name="no", E0s="average", valid_fraction=0,
                   float32=["positions"], store_edges=False)  # fmt: skip
    assert ShardSet(no_edges / "train").batch(np.arange(2)).n_edges.tolist() == [2, 0]


def test_dry_run(tmp_path, capsys):
    broken = molecule()
    broken.positions[0] = np.nan
    write_xyz(tmp_path / "a.xyz", [*molecules(5), crystal(), broken, isolated("H", E_H)])
    write_xyz(tmp_path / "b.xyz", molecules(3))
    run_command(
        "preprocess", "--dry-run", f"data.train_file={tmp_path / 'a.xyz'}",
        f"data.test_file={{hf: {tmp_path / 'b.xyz'}}}", f"output={tmp_path / 'out'}",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.xyz", "b.xyz"]
    for words in (
        "train: 8 structures in",
        "test: 3 structures in",
        "H 7, O 6, Cu 1",
        "REF_energy 8, REF_forces 7",
        "hf 3",
        "position not finite 1",
        "1 to 1      atoms",
        "2 to 3      atoms",
    ):
        assert words in shown, words


def test_foundation_model(tmp_path, trained):
    """E0s of a training of ours."""
    expected = json.loads((trained / "checkpoints" / "best.json").read_text())["model_data"]
    output = run(
        tmp_path, molecules(4), E0s="foundation", foundation_model=str(trained), valid_fraction=0
    )
    E0s = dict(zip(expected["atomic_numbers"], expected["heads"][0]["E0s"], strict=True))
    assert statistics_in(output).E0s == {z: E0s[z] for z in (1, 8)}
    assert statistics_in(output).E0s_source == "foundation"
    with pytest.raises(InputError, match=r"E0s=foundation needs data\.foundation_model"):
        run(tmp_path, molecules(4), E0s="foundation", name="again")
    with pytest.raises(InputError, match="nowhere is not there"):
        run(tmp_path, None, train_file=str(tmp_path / "train.xyz"), E0s="foundation",
            foundation_model="nowhere", name="again")  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_foundation_model_of_mace_torch(tmp_path):
    """Read from the pickle of the whole model, running nothing of it."""
    import torch

    pytest.importorskip("mace.modules", reason="mace-torch is not installed")
    from tests.model.mace_torch import mace_torch_model

    torch.save(mace_torch_model((1, 6, 8)), tmp_path / "a.model")
    output = run(
        tmp_path, molecules(4), E0s="foundation", foundation_model=str(tmp_path / "a.model"),
        valid_fraction=0,
    )  # fmt: skip
    assert statistics_in(output).E0s == {1: -10.0, 8: -80.0}
    (tmp_path / "b.model").write_bytes(b"no model")
    with pytest.raises(InputError, match="no model of mace-torch"):
        run(tmp_path, None, train_file=str(tmp_path / "train.xyz"), E0s="foundation",
            foundation_model=str(tmp_path / "b.model"), name="again")  # fmt: skip


def test_blocks_of_many_small_files_and_one_large_one(tmp_path, monkeypatch):
    """Files of one structure share a block; a large one is cut."""
    module = importlib.import_module("mace_train.data.preprocess.preprocess")

    for i in range(7):
        write_xyz(tmp_path / f"small{i}.xyz", [molecules(30)[i]])
    large = write_xyz(tmp_path / "large.xyz", [*molecules(23), *atoms_of_molecules()])
    seen = []
    make = module.make_blocks
    monkeypatch.setattr(module, "make_blocks", lambda *a: seen.append(make(*a)) or seen[0])
    data = DataSettings(train_file=[f"{tmp_path}/small*.xyz", large], valid_fraction=0)
    settings = PreprocessSettings(
        data=data, output=str(tmp_path / "out"), r_max=3.0, structures_per_shard=10
    )
    shards = ShardSet(preprocess(settings) / "train")
    assert [len(block.parts) for block in seen[0]] == [7, 1, 1, 1]
    assert len(shards) == 30
    energies = [shards.sample(i).structure.energy for i in range(30)]
    assert energies == [m.info["REF_energy"] for m in (*molecules(7), *molecules(23))]
