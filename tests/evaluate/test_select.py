"""Selection: the chosen structures are those that brute force over all of them chooses."""

import subprocess
import sys

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from mace_train.evaluate.farthest_points import random_projection
from mace_train.evaluate.select import columns_that_fit, select
from mace_train.settings import ClusterSettings, SelectSettings
from mace_train.train.checkpoint import load_model
from tests.conftest import TINY_MODEL, run_command
from tests.evaluate.brute_force import brute_force

CPU = "cluster.device=cpu"


def mean_descriptors(checkpoint, structures):
    calculator = MACETrainCalculator(checkpoint, device="cpu")
    return np.array([calculator.get_descriptors(atoms).mean(axis=0) for atoms in structures])


def without_isolated(structures):
    return [atoms for atoms in structures if atoms.info["config_type"] != "IsolatedAtom"]


def chosen_in(path):
    """(isolated atoms, chosen structures) of a file."""
    structures = read(path, ":")
    chosen = [atoms for atoms in structures if "selection_rank" in atoms.info]
    assert structures[len(structures) - len(chosen) :] == chosen
    return structures[: len(structures) - len(chosen)], chosen


def in_order(chosen):
    """Sources of the chosen structures, the first chosen first."""
    ranked = sorted(chosen, key=lambda atoms: atoms.info["selection_rank"])
    assert [atoms.info["selection_rank"] for atoms in ranked] == list(range(len(chosen)))
    return [atoms.info["source"] for atoms in ranked]


@pytest.mark.parametrize("batch", ["batching.valid_batch_size=3", "batching.max_edges=120"])
def test_the_chosen_are_those_of_brute_force(trained, xyz, tmp_path, batch):
    output = tmp_path / "new" / "chosen.xyz"
    words = [f"checkpoint={trained}", f"structures={xyz}", "n=10", f"output={output}", CPU]
    run_command("select", *words, batch, "seed=4")
    isolated, chosen = chosen_in(output)
    everything = read(xyz, ":")
    candidates = without_isolated(everything)
    points = mean_descriptors(trained, candidates)
    sources = [f"{xyz}, structure {i}" for i in range(len(everything))][4:]
    first = int(np.random.default_rng(4).integers(len(candidates)))
    expected, _ = brute_force(points, 10, first)
    assert in_order(chosen) == [sources[i] for i in expected]
    positions = [int(atoms.info["source"].split()[-1]) for atoms in chosen]
    assert positions == sorted(positions)
    for atoms, i in zip(chosen, positions, strict=True):
        original = everything[i]
        assert (atoms.numbers == original.numbers).all()
        np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-7)
        assert atoms.info["REF_energy"] == pytest.approx(original.info["REF_energy"], rel=1e-12)
        np.testing.assert_allclose(
            atoms.arrays["REF_forces"], original.arrays["REF_forces"], atol=1e-7
        )
        assert ("REF_stress" in atoms.info) == atoms.pbc.all()
        assert atoms.info["config_type"] == original.info["config_type"]
        assert "head" not in atoms.info
    symbols = {symbol for atoms in chosen for symbol in atoms.symbols}
    assert {atoms.get_chemical_formula() for atoms in isolated} == symbols
    originals = {str(a.symbols): a.info["REF_energy"] for a in everything[:4]}
    for atoms in isolated:
        assert atoms.info["REF_energy"] == originals[str(atoms.symbols)]


def test_shards_give_the_same_with_their_E0s(trained, prepared, tmp_path):
    """Workers or not, and the isolated atoms are made from statistics.json."""
    for k, workers in enumerate((0, 2)):
        words = [f"checkpoint={trained}", f"data_dir={prepared}", "split=train", "n=7", CPU]
        words += [f"cluster.num_workers={workers}", f"output={tmp_path / f'{k}.extxyz'}"]
        run_command("select", *words)
    assert (tmp_path / "0.extxyz").read_text() == (tmp_path / "1.extxyz").read_text()
    isolated, chosen = chosen_in(tmp_path / "0.extxyz")
    assert len(chosen) == 7
    model, _ = load_model(trained)
    E0s = dict(zip(model.data.atomic_numbers, model.E0s[0].tolist(), strict=True))
    for atoms in isolated:
        assert atoms.info["config_type"] == "IsolatedAtom"
        assert atoms.info["REF_energy"] == pytest.approx(E0s[atoms.numbers[0]], abs=1e-9)
    assert len(isolated) == len({z for atoms in chosen for z in atoms.numbers})


def test_pseudolabels_are_what_the_model_predicts_and_can_be_trained_on(trained, xyz, tmp_path):
    output = tmp_path / "replay.xyz"
    run_command(
        "select",
        *(f"checkpoint={trained}", f"structures={xyz}", "n=12", "elements=[O,H,N,Al]", CPU),
        *("pseudolabels=true", f"output={output}", "default_dtype=float64"),
    )
    isolated, chosen = chosen_in(output)
    calculator = MACETrainCalculator(trained, device="cpu", default_dtype="float64")
    n_stress = 0
    for atoms in chosen:
        reference = atoms.copy()
        reference.calc = calculator
        energy = reference.get_potential_energy()
        assert atoms.info["REF_energy"] == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], reference.get_forces(), atol=1e-6)
        if atoms.pbc.all():
            n_stress += 1
            np.testing.assert_allclose(
                np.reshape(atoms.info["REF_stress"], (3, 3)),
                reference.get_stress(voigt=False),
                atol=1e-7,
            )
        else:
            assert "REF_stress" not in atoms.info
    assert n_stress > 0
    model, _ = load_model(trained)
    E0s = dict(zip(model.data.atomic_numbers, model.E0s[0].tolist(), strict=True))
    assert {int(a.numbers[0]): a.info["REF_energy"] for a in isolated} == pytest.approx(
        {z: E0s[z] for atoms in chosen for z in atoms.numbers}
    )
    data, run = tmp_path / "both", tmp_path / "run"
    files = f"data.train_file={{old: {output}, new: {xyz}}}"
    run_command("preprocess", files, "r_max=4.0", f"output={data}")
    run_command(
        "train",
        *(f"data_dir={data}", f"foundation.checkpoint={trained}", "cluster=cpu"),
        *("max_num_epochs=1", "optimizer.lr=1e-6", "checkpoints.head=new", f"output={run}"),
    )
    tuned, _ = load_model(run)
    assert tuned.data.head_names == ("new", "old")
    old = tuned.data.heads[1]
    assert dict(zip(tuned.data.atomic_numbers, old.E0s, strict=True)) == pytest.approx(E0s)
    errors = tmp_path / "errors"
    words = [f"checkpoint={trained}", f"test_file={output}", f"output={errors}", "plots=false"]
    run_command("evaluate", *words, "cluster=cpu")
    for atoms in read(errors / "predictions.extxyz", ":"):
        if len(atoms) > 1:
            assert atoms.info["MACE_energy"] == pytest.approx(atoms.info["REF_energy"], abs=1e-3)


@pytest.mark.parametrize(
    ("element_filter", "n_formulas"), [("subset", 1), ("overlap", 4), ("equal", 1), ("superset", 2)]
)
def test_elements(xyz, tmp_path, element_filter, n_formulas):
    """Whichever are drawn at random, without a model."""
    output = tmp_path / "chosen.xyz"
    words = [f"structures={xyz}", "n=1000", "method=random", f"output={output}"]
    run_command("select", *words, "elements=[H,8]", f"element_filter={element_filter}")
    _, chosen = chosen_in(output)
    truth = {
        "subset": lambda own: own <= {1, 8},
        "overlap": lambda own: own & {1, 8},
        "equal": lambda own: own == {1, 8},
        "superset": lambda own: own >= {1, 8},
    }[element_filter]
    every = without_isolated(read(xyz, ":"))
    expected = [atoms for atoms in every if truth(set(atoms.numbers.tolist()))]
    assert len(chosen) == len(expected) > 0
    for found, atoms in zip(chosen, expected, strict=True):
        assert (found.numbers == atoms.numbers).all()
    assert len({atoms.get_chemical_formula() for atoms in chosen}) >= n_formulas


def test_heads_of_shards_keep_their_E0s_and_pseudolabels_have_none(xyz, tmp_path, capsys):
    """A model with two heads: one has to be named; the set's labels keep their heads."""
    data, run = tmp_path / "data", tmp_path / "run"
    shifted = read(xyz, ":")
    for atoms in shifted:
        atoms.info["REF_energy"] += 5.0 * len(atoms)
    write(tmp_path / "other.xyz", shifted, format="extxyz")
    files = f"data.train_file={{a: {xyz}, b: {tmp_path / 'other.xyz'}}}"
    run_command("preprocess", files, "r_max=4.0", f"output={data}")
    train = ["max_num_epochs=1", "cluster=cpu", *TINY_MODEL]
    run_command("train", f"data_dir={data}", f"output={run}", *train)
    model, _ = load_model(run)
    E0s = [dict(zip(model.data.atomic_numbers, row, strict=True)) for row in model.E0s.tolist()]
    words = ["select", f"checkpoint={run}", f"data_dir={data}", "n=9", CPU]
    run_command(*words, f"output={tmp_path / 'own.xyz'}")
    isolated, chosen = chosen_in(tmp_path / "own.xyz")
    assert {atoms.info["head"] for atoms in chosen} <= {"a", "b"}
    for atoms in isolated:
        expected = E0s["ab".index(atoms.info["head"])][int(atoms.numbers[0])]
        assert atoms.info["REF_energy"] == pytest.approx(expected)
    assert {atoms.info["head"] for atoms in isolated} == {"a", "b"}
    words += ["pseudolabels=true", "default_dtype=float64"]
    run_command(*words, f"output={tmp_path / 'b.xyz'}", "head=b")
    isolated, chosen = chosen_in(tmp_path / "b.xyz")
    calculator = MACETrainCalculator(run, head="b", device="cpu", default_dtype="float64")
    for atoms in chosen:
        assert "head" not in atoms.info
        energy = calculator.get_potential_energy(atoms)
        assert atoms.info["REF_energy"] == pytest.approx(energy, abs=1e-6)
    assert all(a.info["REF_energy"] == pytest.approx(E0s[1][a.numbers[0]]) for a in isolated)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_command(*words, f"output={tmp_path / 'c.xyz'}")
    assert "the model has the heads a, b; choose one with head=a" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_elements_of_the_new_data(xyz, prepared, tmp_path, kind):
    new = tmp_path / "new.xyz"
    write(new, [molecule("NH3")], format="extxyz")
    of = new if kind == "file" else prepared
    output = tmp_path / "chosen.xyz"
    words = [f"structures={xyz}", "n=1000", "method=random", f"output={output}"]
    run_command("select", *words, f"elements_of={of}")
    isolated, chosen = chosen_in(output)
    formulas = {atoms.get_chemical_formula() for atoms in chosen}
    if kind == "file":
        assert formulas <= {"H3N", "H6N2", "H9N3"}
        assert {str(atoms.symbols) for atoms in isolated} == {"H", "N"}
    else:
        assert len(chosen) == len(without_isolated(read(xyz, ":")))


def test_random_ones_are_drawn_by_the_seed(xyz, tmp_path):
    def drawn(name, seed):
        output = tmp_path / f"{name}.xyz"
        words = [f"structures={xyz}", "n=6", "method=random", "isolated_atoms=false"]
        run_command("select", *words, f"seed={seed}", f"output={output}")
        isolated, chosen = chosen_in(output)
        assert not isolated
        return in_order(chosen)

    assert drawn("a", 1) == drawn("b", 1) != drawn("c", 2)


def test_a_set_that_is_too_large_is_projected(trained, xyz, tmp_path, capsys, monkeypatch):
    """Said aloud; the same structures as brute force on the projected descriptors."""
    monkeypatch.setattr("mace_train.evaluate.select.FEWEST_COLUMNS", 4)
    candidates = without_isolated(read(xyz, ":"))
    settings = SelectSettings(
        checkpoint=str(trained),
        structures=str(xyz),
        n=8,
        max_memory_gb=5 * 4 * len(candidates) / 1e9,
        output=str(tmp_path / "chosen.xyz"),
        cluster=ClusterSettings(device="cpu"),
    )
    select(settings)
    points = mean_descriptors(trained, candidates) @ random_projection(8, 5, settings.seed)
    first = int(np.random.default_rng(settings.seed).integers(len(candidates)))
    expected, _ = brute_force(points, 8, first)
    sources = [f"{xyz}, structure {4 + i}" for i in expected]
    assert in_order(chosen_in(tmp_path / "chosen.xyz")[1]) == sources


def test_columns_that_fit(caplog):
    assert columns_that_fit(1000, 256, 8.0) == 256
    with caplog.at_level("WARNING", logger="mace_train"):
        assert columns_that_fit(10**8, 256, 40.0) == 100
    assert "from 256 to 100 columns is used, which keeps distances to about 7 %" in caplog.text
    with pytest.raises(ValueError, match=r"at least 6\.4 GB; give max_memory_gb=6\.4 or more"):
        columns_that_fit(10**8, 256, 1.0)


def test_more_than_there_are(trained, xyz, tmp_path, capsys):
    """All are taken; what equals another is left out, and both are said."""
    structures = without_isolated(read(xyz, ":"))[:5]
    write(tmp_path / "twice.xyz", [*structures, *structures], format="extxyz")
    words = [f"checkpoint={trained}", f"structures={tmp_path / 'twice.xyz'}", CPU]
    run_command("select", *words, "n=20", f"output={tmp_path / 'chosen.xyz'}")
    said = capsys.readouterr().err
    assert "n=20, but there are only 10 structures to choose from" in said
    assert "only 5 structures have descriptors of their own" in said
    assert "holds no isolated atoms of" in said
    isolated, chosen = chosen_in(tmp_path / "chosen.xyz")
    assert not isolated
    assert len(chosen) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["structures={xyz}"], "method=farthest needs checkpoint=RUN"),
        (["structures={xyz}", "method=random", "pseudolabels=true"], "pseudolabels=true needs"),
        (["checkpoint={trained}"], "give either structures=FILE or data_dir=FOLDER"),
        (["structures={xyz}", "data_dir={data}", "method=random"], "give either structures="),
        (["structures={xyz}", "method=random", "head=a"], "set pseudolabels=true"),
        (["structures={xyz}", "method=random", "elements=[Xx]"], "'Xx' is no element"),
        (["structures={xyz}", "method=random", "elements=H"], "must be a list, such as [H,C,O]"),
        (
            ["structures={xyz}", "method=random", "elements=[He]"],
            "0 of 32 structures to choose from, by elements He (subset); the set has H, N",
        ),
        (["structures={xyz}", "method=random", "elements=[H]", "elements_of={xyz}"], "both set"),
        (["structures={xyz}", "method=random", "element_filter=equal"], "needs elements="),
        (["structures={xyz}", "method=random", "element_filter=any"], "subset, overlap, equal"),
        (["structures={xyz}", "method=best"], "farthest, random"),
        (["structures=nowhere.xyz", "method=random"], "nowhere.xyz: no such file"),
        (["structures={xyz}", "checkpoint=nowhere"], "nowhere: no such checkpoint"),
        (["structures={xyz}", "checkpoint={trained}", "num_layers=3"], "the model has 2"),
        (["structures={xyz}", "checkpoint={trained}", "num_layers=0"], "no descriptors are left"),
        (["structures={xyz}", "checkpoint={trained}", "pseudolabels=true", "head=a"], "no head"),
        (["structures={carbon}", "checkpoint={trained}"], "carbon.xyz, structure 1: the model"),
        (["structures={xyz}", "method=random", "energy_key=E"], "'E' (energy_key)"),
    ],
)
def test_wrong_settings_end_before_anything_is_written(
    words, message, trained, xyz, prepared, tmp_path, capsys
):
    carbon = tmp_path / "carbon.xyz"
    write(carbon, [molecule("H2O"), molecule("CH4")], format="extxyz")
    names = {"xyz": xyz, "trained": trained, "data": prepared, "carbon": carbon}
    given = [word.format(**names) for word in words]
    with pytest.raises(SystemExit) as stop:
        run_command("select", *given, "n=3", f"output={tmp_path / 'o' / 'chosen.xyz'}", CPU)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("mace-train: error: ") == 1
    assert message in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [("chosen.txt", "ends in .xyz or .extxyz"), ("there.xyz", "is already there")],
)
def test_a_wrong_output(output, message, xyz, tmp_path, capsys):
    (tmp_path / "there.xyz").write_text("mine")
    words = [f"structures={xyz}", "method=random", "n=3", f"output={tmp_path / output}"]
    with pytest.raises(SystemExit):
        run_command("select", *words)
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.xyz").read_text() == "mine"


@pytest.mark.slow
def test_as_a_program(trained, xyz, tmp_path):
    words = [f"checkpoint={trained}", f"structures={xyz}", "n=5", f"output={tmp_path / 'c.xyz'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", "select", *words, CPU, "elements=[H,N]"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "structures to choose from, by elements H, N (subset)" in done.stderr
    assert "distances between descriptors" in done.stderr
    assert len(chosen_in(tmp_path / "c.xyz")[1]) == 5
