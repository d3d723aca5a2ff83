"""Where a case of bad input finds good files and writes bad ones."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms
from ase.build import molecule
from ase.io import write

from tests.conftest import TINY_MODEL, emt_structures, labelled, run_command


@dataclass
class Place:
    """Where a case finds good files and writes bad ones."""

    folder: Path
    xyz: Path
    prepared: Path
    trained: Path
    environment: dict[str, str] = field(default_factory=dict)  # to set for the command

    @property
    def output(self) -> Path:
        """The output of the command under test, which must not exist afterwards."""
        return self.folder / "output"

    def file(self, structures: list[Atoms], name: str = "bad.xyz") -> Path:
        """An extxyz file with isolated atoms and ``structures``."""
        path = self.folder / name
        isolated = [a for a in emt_structures(0, 0) if a.info["config_type"] == "IsolatedAtom"]
        write(path, isolated + structures, format="extxyz")
        return path

    def preprocess(self, path: Path, *more: str) -> list[str]:
        """Arguments that preprocess ``path``."""
        return ["preprocess", f"data.train_file={path}", f"output={self.output}", "r_max=4", *more]

    def train(self, *more: str, data: Path | None = None) -> list[str]:
        """Arguments that train on ``data``."""
        data = data or self.prepared
        settings = [f"data_dir={data}", f"output={self.output}", "cluster=cpu", *TINY_MODEL]
        return ["train", *settings, "max_num_epochs=1", *more]

    def evaluate(self, *more: str) -> list[str]:
        """Arguments that evaluate the trained model."""
        return ["evaluate", f"checkpoint={self.trained}", f"output={self.output}", *more]

    def weighted(self, config_weight: float, **info: float) -> list[Atoms]:
        """Two labelled molecules of a weight."""
        return [water(config_weight=config_weight, **info) for _ in range(2)]

    def prepare(self, train: list[Atoms], valid: list[Atoms] | None = None) -> Path:
        """These structures, preprocessed; the training structures are validated on as well."""
        files = [self.file(train, "given.xyz"), self.folder / "given_valid.xyz"]
        write(files[1], train if valid is None else valid, format="extxyz")
        data = self.folder / "given"
        names = [f"data.train_file={files[0]}", f"data.valid_file={files[1]}"]
        run_command("preprocess", *names, "r_max=4", f"output={data}")
        return data

    def copy_prepared(self) -> Path:
        """A copy of the preprocessed folder that the case may damage."""
        target = self.folder / "prepared"
        shutil.copytree(self.prepared, target)
        return target

    def copy_trained(self) -> Path:
        """A copy of the trained folder, as the output of the command under test."""
        target = self.folder / "trained"
        shutil.copytree(self.trained, target)
        return target


def water(**info: object) -> Atoms:
    """One labelled molecule with changed labels."""
    atoms = labelled(molecule("H2O"), "molecule")
    atoms.info.update(info)
    return atoms
