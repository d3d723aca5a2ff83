"""The wheel holds what the checkout holds: code, configs, kernels, data, and no leftovers."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA_FOLDERS = ("configs", "kernels", "mace_train/example_data")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as unpacked:
        unpacked.extractall(folder / "unpacked")
    return folder / "unpacked"


def files_under(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file(wheel):
    installed = files_under(wheel / "mace_train")
    expected = files_under(ROOT / "mace_train")
    for folder in ("configs", "kernels"):
        expected |= {f"{folder}/{name}" for name in files_under(ROOT / folder)}
    assert installed == expected
    assert {"configs/train.yaml", "example_data/train.extxyz.gz", "kernels/README.md"} <= installed


def test_the_program_runs_from_the_wheel(wheel, tmp_path):
    arguments = ["preprocess", "data=example", "output=x", "--cfg", "job", "--resolve"]
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if "train_file" in line)
    assert Path(line.split(": ")[1]) == wheel / "mace_train" / "example_data" / "train.extxyz.gz"
