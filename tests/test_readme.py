"""README: its commands exist and compose, its pictures are there, and it stays short."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ase.build import molecule
from ase.io import write

from tests.conftest import run_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def test_it_is_short():
    assert len(README.splitlines()) <= 160


def test_the_two_commands_of_a_newcomer():
    for script in ("scripts/quickstart.sh", "scripts/test.sh"):
        assert any(script in command for command in commands())
        assert (ROOT / script).stat().st_mode & 0o111


@pytest.mark.parametrize(
    "command", [c for c in commands() if "mace-train " in c or "-m mace_train" in c]
)
def test_every_command_composes(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word in ("mace-train", "mace_train"))
    arguments = [word for word in words[start + 1 :] if word not in ("--multirun", "-m")]
    arguments = [re.sub(r"=(\w+(?:\.\w+)?),.*", r"=\1", word) for word in arguments]  # sweeps
    run_command(
        *arguments, *([] if "--cfg" in arguments or "--help" in arguments else ["--cfg", "job"])
    )
    assert "error" not in capsys.readouterr().err


def test_the_python_runs(prepared, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").symlink_to(prepared)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(trained)
    write("start.xyz", molecule("H2O"))
    calculator, loader = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(calculator, "README.md", "exec"), names)
    assert names["atoms"].calc.results["forces"].shape == (3, 3)
    exec(compile(loader, "README.md", "exec"), names)
    assert names["vectors"].shape[0] == names["graph"].n_edges > 0


def test_it_says_first_that_no_gpu_has_run_it():
    assert "No GPU has run it yet" in README[: README.index("## ")]


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).exists()
