"""A small model as a program, made once; a file to start from."""

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write

from mace_train.model.mace import MACE
from mace_train.train.checkpoint import model_header, save, with_prefix
from tests.conftest import run_command
from tests.model.systems import model_of


@dataclass(frozen=True)
class Exported:
    """What ``mace-train export`` wrote and said."""

    model: MACE
    path: Path
    said: str


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    settings = {"correlation": 2, "max_ell": 1, "num_interactions": 1, "radial_MLP": [4]}
    model = model_of((1, 8, 13), **settings)
    header = {**model_header(model), "default_dtype": "float64"}
    save(folder / "small.safetensors", with_prefix("model.", model.state_dict()), header)
    path, said = folder / "model.pt2", io.StringIO()
    arguments = [f"checkpoint={folder / 'small.safetensors'}", f"output={path}"]
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")  # of PyTorch's own
        run_command("export", "format=export", *arguments)
    return Exported(model, path, said.getvalue())


@pytest.fixture
def crystal(tmp_path):
    """A file with a molecule and, last, a strained crystal."""
    atoms = bulk("Al", cubic=True)
    atoms.set_cell(1.02 * atoms.cell, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    path = tmp_path / "start.xyz"
    write(path, [molecule("H2O"), atoms])
    return path
