"""Scripts that nothing else runs: they can be imported, and measured costs can be used."""

import sys
from pathlib import Path

import pytest

from mace_train.balance.cost_model import read_cost_model
from tests.modules import module_of

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/bench/**/*.py")])
MADE_HERE = ("mace_train", "tests", "example_data")


@pytest.mark.filterwarnings("ignore")  # of the peers that they compare with
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_finds_what_it_imports(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(path.parent), str(ROOT / "scripts" / "bench"), *sys.path])
    try:
        module_of(path)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in MADE_HERE:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_measured_costs_are_a_cost_model(prepared, tmp_path, monkeypatch):
    costs = tmp_path / "costs.json"
    words = ["--data", prepared, "--model", "tiny", "--max-atoms", 40, "--sizes", 4]
    words += ["--repeats", 2, "--output", costs]
    monkeypatch.setattr(sys, "argv", ["measure_costs.py", *map(str, words)])
    module_of(ROOT / "scripts" / "measure_costs.py").main()
    model = read_cost_model(str(costs))
    assert model.source.startswith("measured: model tiny")
    assert model.seconds(40, 400) > 0
