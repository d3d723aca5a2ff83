"""Scripts that nothing else runs: they import, show their options; measured costs can be used."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from mace_train.balance.cost_model import read_cost_model
from tests.modules import module_of

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/bench/**/*.py")])
PROGRAMS = [path for path in SCRIPTS if '__name__ == "__main__"' in path.read_text()]
PEERS = {"mace", "e3nn", "cuequivariance_torch", "torch_geometric", "ortools", "tblite"}
# they write one fixed file
WITHOUT_OPTIONS = {"make_reference", "make_reference_descriptors", "plot_quickstart"}
# benchmarks without --json: they write a folder, a page or nothing
WITHOUT_JSON = {"campaign", "chunks", "data_scale", "fuzz", "machine"}


def imported(path, monkeypatch) -> ModuleType:
    """The script as a module; a skip where a package that it compares with is not installed."""
    monkeypatch.setattr(sys, "path", [str(path.parent), str(ROOT / "scripts" / "bench"), *sys.path])
    try:
        return module_of(path)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in PEERS:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.filterwarnings("ignore")  # of the peers that they compare with
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_finds_what_it_imports_and_says_what_it_does(path, monkeypatch):
    module = imported(path, monkeypatch)
    assert len((module.__doc__ or "").splitlines()[0]) > 20
    assert hasattr(module, "main") == (path in PROGRAMS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path", [p for p in PROGRAMS if p.stem not in WITHOUT_OPTIONS], ids=lambda path: path.stem
)
def test_it_shows_its_options(path, monkeypatch, capsys):
    main = imported(path, monkeypatch).main
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: {path.name}" in shown
    if "bench" in path.parts:
        assert ("--json" in shown) == (path.stem not in WITHOUT_JSON)


def test_measured_costs_are_a_cost_model(prepared, tmp_path, monkeypatch):
    costs = tmp_path / "costs.json"
    words = ["--data", prepared, "--model", "tiny", "--max-atoms", 40, "--sizes", 4]
    words += ["--repeats", 2, "--output", costs]
    monkeypatch.setattr(sys, "argv", ["measure_costs.py", *map(str, words)])
    module_of(ROOT / "scripts" / "measure_costs.py").main()
    model = read_cost_model(str(costs))
    assert model.source.startswith("measured: model tiny")
    assert model.seconds(40, 400) > 0
