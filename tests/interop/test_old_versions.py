"""Whole models that older versions of mace-torch saved: imported, or refused with the way out."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mace_train.errors import InputError
from mace_train.interop.import_model import import_model
from mace_train.interop.mace_torch import predictions_of
from mace_train.interop.old_layouts import in_current_layout
from mace_train.interop.probe_structures import graph_of, probes
from mace_train.model.derivatives import predict
from mace_train.settings import ImportSettings
from tests.interop.variants import NUMBERS, make_old
from tests.model.mace_torch import mace_torch_model

pytestmark = pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot

MOLECULE = Atoms("HCOH", positions=[[0, 0, 0], [1.1, 0.1, 0], [1.4, 1.2, 0.3], [0.1, -0.4, 1.5]])


def saved_by(version, folder):
    """The model that this version makes and saves, in a process of its own; from PyPI."""
    words = ["-m", "pip", "download", "-q", "--no-deps", "--dest", folder, f"mace-torch=={version}"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    wheels = list(folder.glob("mace_torch-*.whl"))
    if not wheels:
        pytest.skip(f"pip cannot fetch the wheel of mace-torch: {done.stderr.strip()[-200:]}")
    zipfile.ZipFile(wheels[0]).extractall(folder / "package")
    np.save(folder / "positions.npy", MOLECULE.positions)
    environment = os.environ | {
        "PYTHONPATH": str(folder / "package"),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # for e3nn
    }
    command = [sys.executable, str(Path(__file__).with_name("save_old_model.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "old.model"


@pytest.mark.slow
@pytest.mark.usefixtures("mace_here")
@pytest.mark.parametrize("version", ["0.3.6", "0.3.9"])
def test_files_of_older_versions_are_imported(version, tmp_path):
    """0.3.6 knows no heads; up to 0.3.9 the repulsion has a cutoff that it does not use."""
    path = saved_by(version, tmp_path)
    model = import_model(ImportSettings(model_file=str(path), output=str(tmp_path / "new")))
    found = predict(
        model, graph_of([MOLECULE], list(NUMBERS), 4.0), stress=False, create_graph=False
    )
    with np.load(tmp_path / "found.npz") as expected:
        np.testing.assert_allclose(found.energy.detach(), expected["energy"], rtol=1e-12)
        np.testing.assert_allclose(found.forces.detach(), expected["forces"], atol=1e-10)


def leave_a_cutoff(model):
    """As before 0.3.10."""
    model.pair_repulsion_fn.register_buffer("r_max", model.r_max.clone())
    model.pair_repulsion_fn.cutoff = model.radial_embedding.cutoff_fn


def make_first(model):
    """The layout of 2022: plain attributes, contractions by irreps, weights by order."""
    make_old(model)
    plain = {"r_max": float(model.r_max), "atomic_numbers": model.atomic_numbers.tolist()}
    for name in ("r_max", "atomic_numbers", "num_interactions"):
        del model._buffers[name]
    model.__dict__.update(plain)
    for product in model.products:
        contractions = torch.nn.ModuleDict()
        for degree, contraction in enumerate(product.symmetric_contractions.contractions):
            weights = [contraction.weights_max, *contraction.weights]
            del contraction._parameters["weights_max"]
            orders = range(len(weights), 0, -1)
            contraction.weights = torch.nn.ParameterDict(
                {str(order): weight for order, weight in zip(orders, weights, strict=True)}
            )
            contractions[f"4x{degree}{'eo'[degree % 2]}"] = contraction
        product.symmetric_contractions.contractions = contractions


@pytest.mark.usefixtures("mace_here")
@pytest.mark.parametrize(
    ("age", "arguments"),
    [
        (leave_a_cutoff, {"pair_repulsion": True, "num_interactions": 1, "max_L": 0}),
        (make_first, {"correlation": 3, "max_ell": 2}),
    ],
    ids=["before_0_3_10", "first_layout"],
)
def test_old_layouts_are_imported(age, arguments, tmp_path, caplog):
    """Compared by the import itself with what mace-torch makes of them, and here once more."""
    theirs = mace_torch_model(NUMBERS, **{"max_ell": 1, "correlation": 2, **arguments})
    graph = probes(list(NUMBERS), 4.0)
    expected = predictions_of(theirs, graph)
    age(theirs)
    torch.save(theirs, tmp_path / "old.model")
    caplog.set_level("INFO", "mace_train")
    model = import_model(
        ImportSettings(model_file=str(tmp_path / "old.model"), output=str(tmp_path / "new"))
    )
    assert any("ours and mace-torch's: the same" in message for message in caplog.messages)
    assert model.data.atomic_numbers == NUMBERS
    found = predict(model, graph, stress=True, create_graph=False)
    for name, value in (("energy", found.energy), ("forces", found.forces)):
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(value.detach(), expected[name], rtol=0, atol=1e-10 * scale)


@pytest.mark.usefixtures("mace_here")
def test_what_the_installed_version_cannot_run_is_refused_with_the_way_out(tmp_path):
    theirs = mace_torch_model(NUMBERS, max_ell=1, correlation=2)
    for name in ("r_max", "atomic_numbers"):
        value = theirs._buffers.pop(name).tolist()
        theirs.__dict__[name] = value
    torch.save(theirs, tmp_path / "old.model")
    settings = {"model_file": str(tmp_path / "old.model"), "output": str(tmp_path / "new")}
    with pytest.raises(InputError, match=r"mace-torch 0\.[\d.]+ .*without trust=true"):
        import_model(ImportSettings(**settings, trust=True))
    assert not (tmp_path / "new").exists()
    assert import_model(ImportSettings(**settings)).data.atomic_numbers == NUMBERS


def test_current_tensors_stay_as_they_are():
    tensors = {
        "r_max": torch.tensor(4.0),
        "atomic_numbers": torch.tensor([1, 8]),
        "atomic_energies_fn.atomic_energies": torch.zeros(1, 2),
        "scale_shift.scale": torch.ones(1),
        "products.0.symmetric_contractions.contractions.1.weights.0": torch.zeros(2, 3, 4),
        "pair_repulsion_fn.p": torch.tensor(5),
    }
    found = in_current_layout(tensors, [1, 8])
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
