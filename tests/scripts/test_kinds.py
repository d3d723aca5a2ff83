"""The table of kinds of models: what it compares, and that it fails where a kind falls short."""

import json
import sys

import pytest
import torch

from tests.model.mace_torch import import_mace
from tests.modules import module_of
from tests.tree import ROOT

try:
    import_mace()
except ImportError:  # mace-torch is an optional extra
    pytest.skip("mace-torch is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot


@pytest.fixture
def kinds(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    words = ["--kinds", "tiny", "--no-steps", "--markdown", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["kinds.py", *words])
    return module_of(ROOT / "scripts" / "bench" / "kinds.py")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_recipe_is_in_the_table(kinds):
    assert set(kinds.RECIPES) <= kinds.KINDS.keys()


def test_numbers_agree(kinds, tmp_path, capsys):
    assert kinds.main() == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["complete"]
    names = [row["name"].removeprefix("tiny: ") for row in found["rows"]]
    assert names == ["energy", "node_energy", "forces", "stress"]
    assert "| tiny | for tests: 32x0e |" in capsys.readouterr().out


def test_another_number_fails(kinds, monkeypatch):
    monkeypatch.setattr(kinds, "differences", lambda *_: {"energy": 0.0, "forces": 2e-10})
    assert kinds.main() == 1


def test_a_slow_step_fails(kinds, monkeypatch):
    argv = [word for word in sys.argv if word != "--no-steps"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(kinds, "seconds_of", lambda *_: {"ours": [1.0], "mace-torch": [1.9]})
    assert kinds.main() == 1
