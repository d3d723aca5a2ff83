"""Undamaged inputs of every command, made once: what a case changes one thing of."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from ase.io import write

from tests.conftest import TINY_MODEL, emt_structures, run_command

MACE_YAML = {
    "name": "water",
    "train_file": "train.xyz",
    "r_max": 4.0,
    "hidden_irreps": "16x0e + 16x1o",
    "E0s": "{1: -13.6, 8: -432.1}",
    "loss": "universal",
    "max_num_epochs": 4,
    "swa": True,
    "scheduler": "ExponentialLR",
    "lr_params_factors": '{"embedding_lr_factor": 0.0, "readouts_lr_factor": 2.0}',
    "config_type_weights": '{"Default": 1.0, "bulk": 2.0}',
    "heads": "{'dft': {'train_file': 'a.xyz', 'E0s': 'average'}}",
}
COSTS = {"fixed_s": 1e-3, "atom_s": 1e-5, "edge_s": 1e-6, "fixed_bytes": 1e6, "atom_bytes": 1e3}


@dataclass(frozen=True)
class Fixtures:
    """The files of a folder that ``make`` has filled."""

    folder: Path

    @property
    def base(self) -> dict[str, list[str]]:
        """A command line of every command that does little and succeeds."""
        at = self.folder
        prepared, run, test = f"{at}/prepared", f"{at}/run", f"{at}/test.xyz"
        small = ["cluster=cpu", "max_num_epochs=1", *TINY_MODEL]
        train = [f"data_dir={prepared}", "output=out", *small]
        model = [f"checkpoint={run}", f"structure={test}", "output=out"]
        return {
            "preprocess": [f"data.train_file={at}/train.xyz", "r_max=3.0", "output=out"],
            "inspect": [f"data_dir={prepared}", "output=out", "plots=false"],
            "balance": [f"data_dir={prepared}", "gpus=2", "scaling=false", "gap_instances=0"],
            "train": train,
            "evaluate": [f"checkpoint={run}", f"test_file={test}", "output=out", "plots=false"],
            "report": [f"run={run}", "output=out"],
            "compare": [f"runs=[{run}]"],
            "sweep": ["folder=sweep"],  # copied, for it is written into
            "tune": ["trials=1", "output=out", "--", "data_dir=none", "seed=1,2"],
            "md": [*model, "steps=2", "interval=1"],
            "relax": [*model, "max_steps=2"],
            "import": [f"model_file={at}/state.safetensors", "output=out"],
            "export": [f"checkpoint={run}", "format=state_dict", "output=out.safetensors"],
            "from-mace-config": [f"config={at}/mace.yaml"],
            "descriptors": [f"checkpoint={run}", f"structures={test}", "output=out.h5"],
            "select": [f"checkpoint={run}", f"structures={test}", "n=1", "output=out.xyz"],
            "doctor": ["read_seconds=0.1", "message_mb=0.1"],
        }


def make(folder: Path) -> Fixtures:
    """Write the fixtures; every command that is used for it runs in this process."""
    folder.mkdir(parents=True)
    found = Fixtures(folder)
    write(folder / "train.xyz", emt_structures(8, 3), format="extxyz")
    write(folder / "test.xyz", emt_structures(2, 1, seed=1)[-2:], format="extxyz")
    prepared, run = folder / "prepared", folder / "run"
    split = ["data.valid_fraction=0.25", "structures_per_shard=4"]
    run_command("preprocess", f"data.train_file={folder}/train.xyz", "r_max=3.0", *split,
                f"output={prepared}")  # fmt: skip
    run_command("train", *found.base["train"], f"output={run}")
    job = folder / "sweep" / "0"
    shutil.copytree(run, job)
    record = {"state": "done", "overrides": ["seed=1"], "host": "a", "process": 1,
              "started": 1.0, "ended": 2.0, "log": None}  # fmt: skip
    (job / "job.json").write_text(json.dumps(record))
    state = folder / "state.safetensors"
    run_command("export", f"checkpoint={run}", "format=state_dict", f"output={state}")
    run_command("import", f"model_file={state}", f"output={folder}/imported")
    words = [f"checkpoint={run}", f"test_file={folder}/test.xyz", f"output={folder}/evaluation"]
    run_command("evaluate", *words)
    (folder / "mace.yaml").write_text(yaml.safe_dump(MACE_YAML))
    (folder / "costs.json").write_text(json.dumps(COSTS))
    (folder / "E0s.json").write_text(json.dumps({"1": 3.21, "7": 5.1, "8": 4.6, "13": 3.28}))
    return found
