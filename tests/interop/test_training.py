"""The same training: from the same weights, with the same batches, both end with the same weights.

One set of options of mace_run_train goes to both programs, to ours by ``from-mace-config``. Ours
preprocesses the files and trains; mace_run_train reads them itself and trains from our initial
weights with our batches. Compared are the last weights, the EMA, the best epoch and its weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from omegaconf import OmegaConf

from mace_train.balance.epoch_plan import EpochPlan
from mace_train.distributed.world import World
from mace_train.interop.from_mace_config import _word, translate
from mace_train.interop.state_dict import to_mace_torch_state_dict
from mace_train.settings import TrainSettings
from mace_train.train import log
from mace_train.train.checkpoint import read
from mace_train.train.optim import is_schedule_free
from mace_train.train.run import Run
from mace_train.train.setup import set_up
from mace_train.train.train import fit
from tests.conftest import run_command
from tests.interop.their_training import best_of_theirs, train_theirs

pytestmark = pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot

N_TRAIN, N_VALID, N_PER_BATCH = 12, 4, 3
N_EPOCHS = 50  # of 4 steps
TOLERANCE = 1e-8
OPTIONS = {
    "model": "ScaleShiftMACE",
    "num_channels": 4,
    "max_L": 1,
    "max_ell": 1,
    "correlation": 2,
    "num_interactions": 2,
    "radial_MLP": "[8]",
    "MLP_irreps": "4x0e",
    "num_radial_basis": 4,
    "r_max": 3.2,
    "E0s": "average",
    "batch_size": N_PER_BATCH,
    "max_num_epochs": N_EPOCHS,
    "lr": 0.01,
    "ema": True,
    "plot": False,
}
PLATEAU = {"scheduler_patience": 1, "lr_factor": 0.5}
TWO = {"swa": True, "start_swa": 30, "swa_lr": 0.002}
CASES: dict[str, dict[str, Any]] = {
    # losses
    "weighted": {},
    "forces_only": {"loss": "forces_only"},
    "ef": {"loss": "ef"},
    "stress": {"loss": "stress", "stress_weight": 10.0},
    "virials": {"loss": "virials", "virials_weight": 3.0},
    "huber": {"loss": "huber", "forces_weight": 10.0, "huber_delta": 0.05},
    "universal": {"loss": "universal", "forces_weight": 10.0, "stress_weight": 5.0},
    "l1l2": {"loss": "l1l2energyforces", "forces_weight": 10.0},
    "config_types": {"config_type_weights": '{"cubic": 2.5, "primitive": 0.5}'},
    "agnostic": {"model": "MACE"},
    "density": {
        "interaction_first": "RealAgnosticDensityInteractionBlock",
        "interaction": "RealAgnosticDensityResidualInteractionBlock",
    },
    # optimizers
    "adamw": {"optimizer": "adamw", "weight_decay": 0.05, "beta": 0.8},
    "l2": {"weight_decay": 0.05},
    "schedulefree": {"optimizer": "schedulefree", "ema": False, "weight_decay": 0.05},
    "no_clipping": {"clip_grad": "None", "ema": False},
    "clipping": {"clip_grad": 0.5, "ema_decay": 0.9},
    "lr_factors": {"lr_params_factors": '{"embedding_lr_factor": 0.1, "readouts_lr_factor": 2.0}'},
    "frozen": {"freeze": 6},
    # schedules and stages
    "plateau": {**PLATEAU, "lr": 0.02},
    "exponential": {"scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.95},
    "two_weighted": {**PLATEAU, **TWO},
    "two_stress": {"loss": "stress", **TWO},
    "two_virials": {"loss": "virials", **TWO},
    "two_universal": {"loss": "universal", **TWO},
    "two_schedulefree": {"optimizer": "schedulefree", "ema": False, **TWO},
}
LONG = ("weighted", "plateau", "schedulefree", "two_stress")  # of 200 steps
SHORT = {"max_num_epochs": 12}  # 48 steps, which every other case has


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """Trainings draw no curves."""
    monkeypatch.setattr(log.MetricsLog, "_draw", lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_same_weights_after_200_steps(name, mace_here, tmp_path, monkeypatch):
    compare(CASES[name], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG])
def test_same_weights_after_48_steps(name, mace_here, tmp_path, monkeypatch):
    """Any of these with 200 steps, too: ``SHORT`` is what makes them short."""
    start = {"start_swa": 7} if "swa" in CASES[name] else {}
    compare({**CASES[name], **SHORT, **start}, tmp_path, monkeypatch)


def test_same_weights_after_32_steps_of_two_stages(mace_here, tmp_path, monkeypatch):
    changes = {**CASES["two_universal"], **PLATEAU, "max_num_epochs": 8, "start_swa": 6}
    compare(changes, tmp_path, monkeypatch)


@pytest.mark.slow
def test_same_weights_of_two_heads(mace_here, tmp_path, monkeypatch):
    """Of two levels of theory; mace-torch's best epoch is the best of its last head."""
    files = {head: write_files(tmp_path / head, seed) for seed, head in enumerate(("pbe", "scan"))}
    changes = {"heads": str(files), "loss": "universal", "forces_weight": 10.0}
    compare({**changes, "max_num_epochs": 25}, tmp_path, monkeypatch)


def test_same_weights_after_lbfgs(mace_here, tmp_path, monkeypatch):
    """Two epochs, which are 40 iterations; in one batch, and without clipping."""
    changes = {"lbfgs": True, "ema": False, "clip_grad": "None", "batch_size": N_TRAIN}
    compare({**changes, "max_num_epochs": 2}, tmp_path, monkeypatch)


def compare(changes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train both programs with OPTIONS and these changes; the ends must be equal."""
    config = folder / "options.yaml"
    options = {**OPTIONS, **changes, "name": "it", "work_dir": str(folder)}
    if "heads" not in options:
        options |= write_files(folder)
    config.write_text(yaml.safe_dump(options))
    run = set_up(our_settings(config), World())
    initial = to_mace_torch_state_dict(run.model)
    theirs = train_theirs(config, initial, lambda epoch: batches_of(run, epoch), monkeypatch)
    fit(run)
    assert_same_training(run, theirs)
    changes_of = [(p - initial[n]).abs().max() for n, p in run.model.named_parameters()]
    assert max(changes_of) > 0.01


def our_settings(config: Path) -> TrainSettings:
    """Settings of the training that a file for mace_run_train asks for; data are prepared."""
    equal, _ = translate(str(config), [])
    run_command("preprocess", *(f"{n}={_word(v)}" for n, v in equal["preprocess"].items()))
    schema = OmegaConf.structured(TrainSettings)
    for name, value in {**equal["train"], "logger.progress": False}.items():
        OmegaConf.update(schema, name, value, force_add=True)
    settings = OmegaConf.to_object(schema)
    assert isinstance(settings, TrainSettings)
    return settings


def write_files(folder: Path, seed: int = 0) -> dict[str, str]:
    """Training and validation files: strained crystals of copper and gold with EMT's labels."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    files = {"train_file": N_TRAIN, "valid_file": N_VALID}
    for name, n in files.items():
        structures = [alloy(random, cubic=i % 3 > 0) for i in range(n)]
        write(folder / f"{name}.xyz", structures, format="extxyz")
    return {name: str(folder / f"{name}.xyz") for name in files}


def alloy(random: np.random.Generator, *, cubic: bool) -> Atoms:
    """A crystal of 1 or 4 atoms with labels."""
    atoms = bulk("Cu", cubic=cubic)
    atoms.numbers[:] = random.choice([29, 79], len(atoms))
    strain = np.eye(3) * random.uniform(1.0, 1.1) + random.normal(scale=0.02, size=(3, 3))
    atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
    atoms.rattle(0.1, rng=random)
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = None
    atoms.info = {
        "config_type": "cubic" if cubic else "primitive",
        "REF_energy": float(energy),
        "REF_stress": stress,
        "REF_virials": -atoms.get_volume() * stress,
    }
    atoms.arrays["REF_forces"] = forces
    return atoms


def batches_of(run: Run, epoch: int) -> list[list[int]]:
    """The structures of every step of an epoch."""
    return [ids.tolist() for ids in EpochPlan.full(run.sampler, epoch).bins(0)]


def assert_same_training(run: Run, theirs: dict[str, Any]) -> None:
    """The last weights, the EMA, the learning rate, the best epoch and its weights are equal."""
    found = dict(run.model.named_parameters())
    used = run.updater.weights_to_use() or found
    if is_schedule_free(run.updater.optimizer):
        found = used  # as mace-torch's model after its validation
    expected = dict(theirs["model"].named_parameters())
    assert_close(found, expected)
    if theirs["ema"] is not None:
        shadow = dict(zip(expected, theirs["ema"].shadow_params, strict=True))
        assert_close(used, shadow)
    epoch, weights = best_of_theirs(theirs)
    assert run.progress.best_epoch == epoch
    tensors, _ = read(run.output / "checkpoints" / "best.safetensors")
    assert_close({n.removeprefix("model."): t for n, t in tensors.items()}, weights)
    rates = {group.get("name"): group["lr"] for group in theirs["optimizer"].param_groups}
    for group in run.updater.optimizer.param_groups:
        if group["params"]:
            assert group["lr"] == pytest.approx(rates[group.get("name")], rel=1e-12)


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every tensor of ours is the one of that name."""
    for name, value in ours.items():
        assert float((value - theirs[name].reshape(value.shape)).abs().max()) < TOLERANCE, name
