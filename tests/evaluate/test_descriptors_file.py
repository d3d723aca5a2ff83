"""Files of descriptors hold what the calculator gives, whatever the batches."""

import json

import h5py
import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from tests.conftest import run_command

CPU = "cluster.device=cpu"


def content(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


@pytest.mark.parametrize("invariants_only", [True, False])
def test_a_file_of_structures(trained, xyz, tmp_path, invariants_only):
    output = tmp_path / "new" / "descriptors.h5"
    words = [f"checkpoint={trained}", f"structures={xyz}", "per_atom=true", CPU]
    words += [f"invariants_only={invariants_only}", "default_dtype=float64"]
    run_command("descriptors", *words, "batching.valid_batch_size=5", f"output={output}")
    arrays, attributes = content(output)
    structures = read(xyz, ":")
    calculator = MACETrainCalculator(trained, device="cpu", default_dtype="float64")
    expected = [calculator.get_descriptors(atoms, invariants_only) for atoms in structures]
    assert arrays["mean"].dtype == np.float64
    np.testing.assert_allclose(arrays["atoms"], np.concatenate(expected), atol=1e-12)
    np.testing.assert_allclose(arrays["mean"], [d.mean(axis=0) for d in expected], atol=1e-12)
    assert arrays["n_atoms"].tolist() == [len(atoms) for atoms in structures]
    assert arrays["numbers"].tolist() == [z for atoms in structures for z in atoms.numbers]
    names = [name.decode() for name in arrays["config_type_names"]]
    types = [names[i] for i in arrays["config_type"]]
    assert types == [atoms.info["config_type"] for atoms in structures]
    first = "4x0e" if invariants_only else "4x0e+4x1o"
    assert json.loads(attributes["irreps"]) == [first, "4x0e"]
    assert attributes["format"] == "mace-train descriptors"
    assert attributes["structures"] == str(xyz)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_shards_one_layer_and_workers(trained, prepared, tmp_path):
    files = []
    for k, batch in enumerate(("valid_batch_size=2", "max_atoms=40")):
        files.append(tmp_path / f"{k}.hdf5")
        words = [f"checkpoint={trained}", f"data_dir={prepared}", "split=valid", CPU]
        words += ["num_layers=1", f"batching.{batch}", f"cluster.num_workers={k}"]
        run_command("descriptors", *words, f"output={files[k]}")
    (one, attributes), (two, _) = map(content, files)
    assert one["mean"].shape[1] == 4
    assert one["mean"].dtype == np.float32
    assert set(one) == {"mean", "n_atoms", "config_type", "config_type_names"}
    np.testing.assert_allclose(one["mean"], two["mean"], atol=1e-5)
    assert json.loads(attributes["irreps"]) == ["4x0e"]
    assert attributes["structures"] == f"{prepared}/valid"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either structures=FILE or data_dir=FOLDER"),
        (["structures={carbon}"], "structure 1: the model does not know C (6), which 1 of 2"),
        (["structures={xyz}", "num_layers=3"], "num_layers=3: the model has 2"),
        (["structures={other}"], "no structures"),
        (["data_dir={data}", "split=test"], "test"),
        (["data_dir={data}", "output=descriptors.npz"], "ends in .h5 or .hdf5"),
    ],
)
def test_wrong_settings(words, message, trained, xyz, prepared, tmp_path, capsys):
    carbon, other = tmp_path / "carbon.xyz", tmp_path / "other.xyz"
    write(carbon, [molecule("H2O"), molecule("CH4")], format="extxyz")
    other.write_text("\n")
    names = {"xyz": xyz, "data": prepared, "carbon": carbon, "other": other}
    given = [f"checkpoint={trained}", f"output={tmp_path / 'o' / 'd.h5'}", CPU]
    given += [word.format(**names) for word in words]
    with pytest.raises(SystemExit) as stop:
        run_command("descriptors", *given)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("mace-train: error: ") == 1
    assert not (tmp_path / "o").exists()


def test_shards_of_another_cutoff(trained, xyz, tmp_path, capsys):
    run_command("preprocess", f"data.train_file={xyz}", "r_max=3.5", f"output={tmp_path / 'data'}")
    words = [f"checkpoint={trained}", f"data_dir={tmp_path / 'data'}", CPU]
    with pytest.raises(SystemExit):
        run_command("descriptors", *words, f"output={tmp_path / 'd.h5'}")
    assert "r_max=3.5, the model has r_max=4.0; preprocess with" in capsys.readouterr().err
