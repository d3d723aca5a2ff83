"""The page about calculators: its Python runs as written."""

import re
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write

PAGE = Path(__file__).parents[2] / "mace_train" / "calculators" / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)


@pytest.fixture
def place(trained, exported, tmp_path, monkeypatch):
    """A folder with the runs and structures that the page names."""
    (tmp_path / "runs").mkdir()
    for name in ("first", "second"):
        (tmp_path / "runs" / name).symlink_to(trained)
    (tmp_path / "model.pt2").symlink_to(exported.path)
    write(tmp_path / "start.xyz", molecule("H2O"))
    write(tmp_path / "many.xyz", [molecule("H2O"), bulk("Al"), molecule("NH3")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of torch-sim, and of PyTorch while it exports
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, place):
    if "torch_sim" in SNIPPETS[number]:
        pytest.importorskip("torch_sim", reason="needs the extra torchsim")
    names: dict[str, object] = {}
    exec(compile(SNIPPETS[number], f"snippet {number}", "exec"), names)
    if "hessian" in names:
        assert names["hessian"].shape == (9, 9)
        assert names["spread"].shape == (3, 3)
        assert (names["spread"] == 0).all()  # twice the same run


def test_all_snippets_are_found():
    assert len(SNIPPETS) == 4
