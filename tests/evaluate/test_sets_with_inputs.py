"""Sets of structures with inputs beside the geometry: read, used and written."""

import h5py
import numpy as np
import pytest
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from mace_train.train.checkpoint import model_header, save, with_prefix
from tests.charged import ELEMENTS, SPECS, charged
from tests.conftest import run_command
from tests.model.systems import model_of

CPU, KEYS = "cluster.device=cpu", "info_keys={total_charge: charge}"


@pytest.fixture
def checkpoint(tmp_path):
    small = {"correlation": 2, "max_ell": 1, "num_interactions": 1}
    model = model_of(ELEMENTS, embedding_specs=SPECS, use_embedding_readout=True, **small)
    path = tmp_path / "model.safetensors"
    header = {**model_header(model), "default_dtype": "float64"}
    save(path, with_prefix("model.", model.state_dict()), header)
    return path


@pytest.fixture
def structures(tmp_path):
    found = [charged(seed) for seed in range(6)]
    write(tmp_path / "charged.xyz", found, format="extxyz")
    return tmp_path / "charged.xyz"


def test_descriptors_and_pseudolabels_are_those_of_the_inputs(checkpoint, structures, tmp_path):
    words = [f"checkpoint={checkpoint}", f"structures={structures}", KEYS, CPU]
    run_command("descriptors", *words, f"output={tmp_path / 'd.h5'}")
    calculator = MACETrainCalculator(checkpoint, device="cpu")
    originals = read(structures, ":")
    with h5py.File(tmp_path / "d.h5") as file:
        expected = [calculator.get_descriptors(atoms).mean(axis=0) for atoms in originals]
        np.testing.assert_allclose(file["mean"][()], expected, atol=1e-10)
    run_command("select", *words, "n=4", "pseudolabels=true", f"output={tmp_path / 'c.xyz'}")
    chosen = [atoms for atoms in read(tmp_path / "c.xyz", ":") if len(atoms) > 1]
    assert len(chosen) == 4
    for atoms in chosen:
        original = originals[int(atoms.info["source"].rsplit(" ", 1)[1])]
        energy = calculator.get_potential_energy(original)
        assert atoms.info["REF_energy"] == pytest.approx(energy, abs=1e-9)
        atoms.info["T"] = atoms.info.pop("temperature")  # written under their own names
        assert calculator.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-6)


def test_an_input_that_is_not_taken_is_found_when_the_set_is_read(
    checkpoint, structures, tmp_path, capsys
):
    found = read(structures, ":")
    found[4].info["charge"] = 500
    write(structures, found, format="extxyz")
    words = [f"checkpoint={checkpoint}", f"structures={structures}", KEYS, CPU]
    with pytest.raises(SystemExit):
        run_command("descriptors", *words, f"output={tmp_path / 'o' / 'd.h5'}")
    assert "charged.xyz, structure 4" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
