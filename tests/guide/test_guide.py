"""The user guide: the commands and Python of its pages run, in order and unchanged.

Blocks marked bash and python run in one folder, page after page, with the example data cut to a few
structures and trainings to an epoch. Blocks marked sh need a cluster: their settings are composed.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ase.io import read, write

from mace_train._paths import EXAMPLE_DATA
from mace_train.report import pictures
from tests.conftest import run_command

GUIDE = Path(__file__).parents[2] / "mace_train" / "guide"
PAGES = ("first_training", "own_data", "fine_tuning", "cluster", "sweeps", "deploying", "security")
SCRIPTS = {"preprocess.sbatch": "preprocess", "train.sbatch": "train", "sweep.sbatch": "train"}


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks of a page, in order."""
    text = (GUIDE / f"{page}.md").read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(language, content) for language, content in found if language in languages]


def lines(block: str) -> list[str]:
    """The commands of a block, continued lines joined."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_page_is_listed_and_has_something_to_run():
    index = (GUIDE / "README.md").read_text()
    assert {path.stem for path in GUIDE.glob("*.md")} == {*PAGES, "README"}
    for page in PAGES:
        assert f"({page}.md)" in index
        assert blocks(page, "bash")


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder to follow the guide in, with a few of the example structures."""
    for name, n in (("train", 60), ("test", 12)):
        frames = read(EXAMPLE_DATA / f"{name}.extxyz.gz", ":")
        small = [atoms for atoms in frames if 1 < len(atoms) < 16]
        atoms = [atoms for atoms in frames if len(atoms) == 1]
        write(tmp_path / f".{name}.extxyz", atoms + small[:: len(small) // n], format="extxyz")
    return tmp_path


def shortened(words: list[str], place: Path) -> list[str]:
    """The same command on the few structures, for one epoch."""
    words = [re.sub(r"(max_num_epochs|trials)=\d+", r"\1=1", word) for word in words]
    if "data=example" in words:
        files = [f"data.{name}_file={place}/.{name}.extxyz" for name in ("train", "test")]
        words += files
    if words[0] == "balance":
        words.append("gap_instances=0")
    return words


@pytest.mark.slow
def test_its_commands_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(pictures, "DPI", 40)  # figures are looked at in tests/report
    for page in PAGES:  # pages use what those before have made
        for language, block in blocks(page, "bash", "python"):
            if language == "python":
                exec(compile(block, f"{page}.md", "exec"), {})
                continue
            for line in lines(block):
                follow(line, place)
        assert "error: " not in capsys.readouterr().err


def follow(line: str, place: Path) -> None:
    """Run one line of a page: in this process if it is ours."""
    words = shlex.split(line)
    if words[0] == "mace-train":
        run_command(*shortened(words[1:], place))
    else:
        subprocess.run(["bash", "-euc", line], check=True, capture_output=True)


def cluster_commands() -> list[str]:
    return [line for page in PAGES for _, block in blocks(page, "sh") for line in lines(block)]


@pytest.mark.parametrize("line", cluster_commands())
def test_settings_for_a_cluster_compose(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-n", "-c", line], check=True)
    words = shlex.split(line)
    if words[0] == "sbatch":
        script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        assert (GUIDE.parents[1] / words[script]).is_file()
        words = [SCRIPTS[Path(words[script]).name], *words[script + 1 :]]
    else:
        start = next(i for i, word in enumerate(words) if word in ("mace-train", "mace_train"))
        words = words[start + 1 :]
    if words[0] == "tune":
        words = [*words[: words.index("--")], "training=[]"]
    words = [re.sub(r"=([\w.]+),.*", r"=\1", word) for word in words]  # one job of a sweep
    run_command(*words, "--cfg", "job")
    captured = capsys.readouterr()
    assert "error" not in captured.err
    assert "output:" in captured.out or words[0] == "doctor"
