"""mace-torch's own unit tests of its calculator, on models that mace-train trained and exported.

They are not in mace-torch's wheel, so its source package is fetched with pip. Left out are those
that train another kind of model themselves, or download one.
"""

import importlib.metadata
import inspect
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from ase.io import write

from tests.conftest import run_command
from tests.modules import module_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # mace-torch and e3nn warn a lot
    pytest.mark.usefixtures("mace_here"),
]

TESTS = (
    "node_energy",
    "forces",
    "stress",
    "committee",
    "from_model",
    "dtype_is_instance_local",
    "descriptor",
    "padding",
)


@pytest.fixture
def theirs(tmp_path) -> ModuleType:
    """Their module test_calculator, of the version that is installed."""
    version = importlib.metadata.version("mace-torch")
    words = [f"mace-torch=={version}", "--no-binary", "mace-torch", "--no-deps", "--dest", tmp_path]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-build-isolation", *map(str, words)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    archives = list(tmp_path.glob("mace*torch-*.tar.gz"))
    if not archives:
        pytest.skip(f"pip cannot fetch the source of mace-torch: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
        archive.extractall(tmp_path, **safely)
    (path,) = tmp_path.glob("*/tests/test_calculator.py")
    return module_of(path)


def exported(folder: Path, max_L: int, seed: int) -> Path:
    """A model of 16 channels, as in their test of descriptors, trained for two epochs."""
    run = folder / f"run-{max_L}-{seed}"
    run_command(
        "train",
        f"data_dir={folder / 'prepared'}",
        f"output={run}",
        "model.num_channels=16",
        f"model.max_L={max_L}",
        "default_dtype=float64",
        "loss=stress",
        "max_num_epochs=2",
        f"seed={seed}",
        "cluster=cpu",
    )
    run_command("export", run, "format=mace-torch", f"output={run}.model")
    return Path(f"{run}.model")


def test_they_pass(theirs, tmp_path):
    from mace.calculators.mace import MACECalculator

    configs = theirs.fitting_configs_fixture.__wrapped__()
    write(tmp_path / "fit.xyz", configs)
    run_command(
        "preprocess",
        f"data.train_file={tmp_path / 'fit.xyz'}",
        "data.valid_fraction=0.1",
        "r_max=3.5",
        f"output={tmp_path / 'prepared'}",
    )
    # seeds: their tolerance of finite differences is tight where a force is small
    plain, other, equivariant = (exported(tmp_path, *of) for of in ((0, 5), (0, 6), (1, 5)))
    values = {
        "tmp_path": tmp_path,
        "fitting_configs": configs,
        "trained_model": MACECalculator(model_paths=plain, device="cpu"),
        "trained_equivariant_model": MACECalculator(model_paths=equivariant, device="cpu"),
        "trained_committee": MACECalculator(model_paths=[plain, other], device="cpu"),
    }
    for name in TESTS:
        test = getattr(theirs, f"test_calculator_{name}")
        test(**{name: values[name] for name in inspect.signature(test).parameters})
