"""Descriptors of sets, and selection from them, for a model with inputs beside the geometry."""

import h5py
import numpy as np
import pytest
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from mace_train.train.checkpoint import model_header, save, with_prefix
from tests.charged import ELEMENTS, READ, SPECS, charged
from tests.conftest import run_command
from tests.model.systems import model_of

KEYS = "info_keys={total_charge: charge}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a file and its shards."""
    folder = tmp_path_factory.mktemp("sets")
    model = model_of(ELEMENTS, embedding_specs=SPECS, correlation=2, max_ell=1)
    header = {**model_header(model), "default_dtype": "float64"}
    save(folder / "m.safetensors", with_prefix("model.", model.state_dict()), header)
    write(folder / "a.xyz", [charged(i) for i in range(12)])
    words = ["data.E0s=average", "r_max=4.0", "data.valid_fraction=0", f"output={folder / 'data'}"]
    run_command("preprocess", f"data.train_file={folder / 'a.xyz'}", *words, *READ)
    return folder


def descriptors(place, *words):
    output = place / f"{len(words)}-{'data' in words[0]}.h5"
    run_command("descriptors", f"checkpoint={place / 'm.safetensors'}", f"output={output}", *words)
    with h5py.File(output) as file:
        return file["mean"][()]


def test_descriptors_of_files_shards_and_the_calculator(place):
    of_files = descriptors(place, f"structures={place / 'a.xyz'}", KEYS)
    of_shards = descriptors(place, f"data_dir={place / 'data'}")
    np.testing.assert_allclose(of_shards, of_files, rtol=0, atol=1e-9)
    calculator = MACETrainCalculator(place / "m.safetensors")
    for i, row in enumerate(of_files):
        mean = calculator.get_descriptors(charged(i)).mean(0)
        np.testing.assert_allclose(row, mean, rtol=0, atol=1e-6)  # digits of the file


def test_selected_structures_keep_their_inputs(place, capsys):
    common = [f"checkpoint={place / 'm.safetensors'}", f"structures={place / 'a.xyz'}", "n=5"]
    calculator = MACETrainCalculator(place / "m.safetensors")
    for pseudolabels in ("true", "false"):
        output = place / f"{pseudolabels}.extxyz"
        words = [f"pseudolabels={pseudolabels}", f"output={output}", "isolated_atoms=false"]
        run_command("select", *common, KEYS, *words)
        for atoms in read(output, ":"):
            original = charged(int(atoms.info["source"].split()[-1]))
            assert atoms.info["total_charge"] == original.info.get("charge", 0)
            assert atoms.info["temperature"] == pytest.approx(original.info["T"])
            expected = original.info["REF_energy"]
            if pseudolabels == "true":
                original.calc = calculator
                expected = original.get_potential_energy()
            assert atoms.info["REF_energy"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SystemExit):
        run_command("select", *common, "info_keys={total_charge: T}", f"output={place / 'b.xyz'}")
    assert "a.xyz, structure 1: the input total_charge is 0.1, but" in capsys.readouterr().err
