"""Foundation models by name in every command that takes a model, served from this machine."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from ase.build import molecule

from mace_train.calculators import MACETrainCalculator
from mace_train.data.foundation_e0s import foundation_E0s
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import cache_folder, imported_checkpoint
from mace_train.foundation_models.table import MODELS, FoundationModel
from mace_train.interop.import_model import import_model
from mace_train.settings import ImportSettings
from mace_train.train.checkpoint import load_model, read_header
from tests.conftest import TINY_MODEL, run_command
from tests.foundation_models.server import WITH_TINY, names, serving, torch_file
from tests.interrupted import ROOT
from tests.model.mace_torch import mace_torch_model


class Runs:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


NUMBERS = (1, 7, 8, 13)  # of the fixture ``prepared``


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The models tiny (MIT) and academic (ASL), and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(torch_file()) as state:
        for name, licence in (("tiny", "MIT"), ("academic", "ASL")):
            addresses = (state.url(f"{name}.model"),)
            model = FoundationModel(name, f"{name} of a test", licence, addresses, None, None)
            monkeypatch.setitem(MODELS, name, model)
        yield state


@pytest.fixture
def published(server, tmp_path, mace_here):
    """The server gives a model of mace-torch, as ``mace_run_train`` writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mace_torch_model(
            NUMBERS, r_max=4.0, max_ell=1, num_interactions=1, max_L=0, correlation=1
        )
        torch.save(model, tmp_path / "published.model")
    server.content = (tmp_path / "published.model").read_bytes()
    return server


@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
def test_import_by_name_is_import_of_the_file(published, tmp_path, capsys):
    run_command("import", "tiny", f"output={tmp_path / 'named'}")
    run_command("import", tmp_path / "published.model", f"output={tmp_path / 'given'}")
    (named, header), (given, _) = (load_model(tmp_path / name) for name in ("named", "given"))
    for name, parameter in named.state_dict().items():
        assert torch.equal(parameter, given.state_dict()[name])
    source = header["imported"]
    assert (source["file"], source["name"], source["licence"]) == ("tiny.model", "tiny", "MIT")
    assert published.requests == [None]
    assert capsys.readouterr().err.splitlines()[0].startswith("downloading http://127.0.0.1:")
    with pytest.raises(SystemExit):
        run_command("import", "academic", f"output={tmp_path / 'b'}")
    run_command("import", "academic", "accept_licence=ASL", f"output={tmp_path / 'b'}")
    assert read_header(tmp_path / "b/checkpoints/best.safetensors")["imported"]["licence"] == "ASL"


@pytest.mark.filterwarnings("ignore")
def test_a_calculator_by_name(published, tmp_path):
    water = molecule("H2O")
    water.calc = MACETrainCalculator("tiny", device="cpu")
    energy = water.get_potential_energy()
    import_model(
        ImportSettings(model_file=str(tmp_path / "published.model"), output=str(tmp_path / "b"))
    )
    water.calc = MACETrainCalculator(tmp_path / "b", device="cpu")
    assert energy == water.get_potential_energy()
    folder = imported_checkpoint("tiny")
    assert folder == cache_folder() / "imported" / "tiny"
    before = (folder / "checkpoints" / "best.safetensors").stat().st_mtime_ns
    water.calc = MACETrainCalculator(["tiny", "tiny"], device="cpu")
    assert energy == pytest.approx(water.get_potential_energy(), abs=1e-12)
    assert (folder / "checkpoints" / "best.safetensors").stat().st_mtime_ns == before
    assert len(published.requests) == 1
    with pytest.raises(InputError, match=r"in Python: accept_licence='ASL'"):
        MACETrainCalculator("academic", device="cpu")
    water.calc = MACETrainCalculator("academic", device="cpu", accept_licence="ASL")
    assert energy == water.get_potential_energy()


@pytest.mark.filterwarnings("ignore")
def test_preprocess_and_training_by_name(published, prepared, xyz, tmp_path):
    assert foundation_E0s("tiny").keys() == set(NUMBERS)
    with pytest.raises(InputError, match=r"data\.accept_licence=ASL"):
        foundation_E0s("academic")
    run_command(
        *("preprocess", f"data.train_file={xyz}", "r_max=4.0", f"output={tmp_path / 'data'}"),
        *("data.E0s=foundation", "data.foundation_model=academic", "data.accept_licence=ASL"),
    )
    statistics = json.loads((tmp_path / "data" / "statistics.json").read_text())
    assert "foundation" in json.dumps(statistics)
    words = ("train", f"data_dir={prepared}", "max_num_epochs=1", "cluster=cpu", *TINY_MODEL)
    run_command(
        *(*words, "foundation.checkpoint=academic", "foundation.accept_licence=ASL"),
        f"output={tmp_path / 'run'}",
    )
    header = read_header(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert header["settings"]["foundation"]["checkpoint"] == "academic"
    run_command("export", "tiny", "format=state_dict", f"output={tmp_path / 'tiny.safetensors'}")
    assert len(published.requests) == 2  # one for each name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_there", [True, False])
def test_one_rank_downloads_and_all_train_or_end(is_there, published, prepared, tmp_path):
    published.plan = ["slow"] if is_there else ["404"] * 9
    (tmp_path / "program.py").write_text(WITH_TINY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(tmp_path / "program.py"), published.url("tiny.model")]
    command += ["train", f"data_dir={prepared}", "max_num_epochs=1", "cluster=cpu", *TINY_MODEL]
    command += ["foundation.checkpoint=tiny", f"output={tmp_path / 'run'}"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert len(published.requests) == 1
    assert (done.returncode == 0) == is_there, done.stderr
    assert done.stderr.count("tiny cannot be downloaded: ") == (0 if is_there else 2), done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists() == is_there


def test_nothing_in_what_was_downloaded_is_run(server, tmp_path, capsys):
    marker = tmp_path / "ran"
    torch.save(Runs(marker), tmp_path / "evil.model")
    server.content = (tmp_path / "evil.model").read_bytes()
    for words in (("import", "tiny"), ("export", "tiny", "format=state_dict")):
        with pytest.raises(SystemExit) as stop:
            run_command(*words, f"output={tmp_path / 'b.safetensors'}")
        assert stop.value.code == 2
        assert "tiny.model cannot be read without running what is in it" in capsys.readouterr().err
    with pytest.raises(InputError, match="no model of mace-torch"):
        foundation_E0s("tiny")
    assert not marker.exists()
    assert names(cache_folder() / "imported") == {".tiny.lock"}
