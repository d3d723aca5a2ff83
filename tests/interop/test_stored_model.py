"""Whole models of mace-torch read without their code: the same header and tensors, nothing run."""

import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch

from mace_train.errors import InputError
from mace_train.interop import import_model as importing
from mace_train.interop import subprocess_client
from mace_train.interop.header import header_of
from mace_train.interop.import_model import import_model
from mace_train.interop.state_files import read_file, read_header
from mace_train.interop.stored_model import header_and_tensors
from mace_train.restricted_pickle import RestrictedPickleError
from mace_train.settings import ImportSettings
from mace_train.train.checkpoint import load_model
from tests.conftest import run_command
from tests.interop.variants import CHANGES, NUMBERS, SMALL, VARIANTS
from tests.model.mace_torch import mace_torch_model


class Runs:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def with_pickle(pickled, path):
    """A file of torch.save with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", pickled)
    return path


def small_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mace_torch_model(NUMBERS, max_ell=1, num_interactions=1, max_L=0, correlation=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("mace_here")
@pytest.mark.parametrize("name", [*VARIANTS, "scripted"])
def test_header_and_tensors_are_those_of_the_model(name, tmp_path):
    arguments, _, change = VARIANTS.get(name, ({"scripted": True}, {}, None))
    theirs = mace_torch_model(NUMBERS, **{**SMALL, **arguments})
    if change is not None:
        CHANGES[change](theirs)
    torch.save(theirs, tmp_path / "a.model")
    theirs = torch.load(tmp_path / "a.model", weights_only=False)
    header, tensors = header_and_tensors(read_file(tmp_path / "a.model"))
    assert header == header_of(theirs)
    expected = {name: t for name, t in theirs.state_dict().items() if t.numel() > 0}
    assert tensors.keys() == expected.keys()
    assert any("_w3j_" in key for key in tensors) or name not in ("default", "scripted")
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
@pytest.mark.usefixtures("mace_here")
def test_a_file_is_imported_without_mace_torch(tmp_path, monkeypatch, capsys):
    torch.save(small_model(), tmp_path / "a.model")
    monkeypatch.setattr(importing, "has_mace_torch", lambda: False)
    monkeypatch.setattr(subprocess_client, "run_worker", None)
    run_command("import", tmp_path / "a.model", f"output={tmp_path / 'b'}")
    assert load_model(tmp_path / "b")[0].data.atomic_numbers == NUMBERS
    messages = capsys.readouterr().err.splitlines()
    assert messages[0].endswith("only its tensors were read, nothing in it was run")
    assert "not compared with mace-torch" in messages[1]


@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
@pytest.mark.usefixtures("mace_here")
def test_what_a_model_hides_is_not_run(tmp_path, monkeypatch):
    """Beside its modules, as an attribute, and in the code that e3nn compiled."""
    marker, model = tmp_path / "ran", small_model()
    model.hidden = Runs(marker)
    torch.save(model, tmp_path / "a.model")
    import_model(ImportSettings(model_file=str(tmp_path / "a.model"), output=str(tmp_path / "b")))
    assert not marker.exists()
    del model.hidden
    script = with_pickle(pickle.dumps(Runs(marker), protocol=2), io.BytesIO()).getvalue()
    monkeypatch.setattr(torch.jit, "save", lambda module, buffer: buffer.write(script))
    torch.save(model, tmp_path / "c.model")
    header, tensors = header_and_tensors(read_file(tmp_path / "c.model"))
    assert header["num_channels"] == 4
    assert not any("_w3j_" in name for name in tensors)
    assert not marker.exists()


def legacy(path, marker):
    path.write_bytes(pickle.dumps(Runs(marker)))


def zipped(path, marker):
    with_pickle(pickle.dumps(Runs(marker)), path)


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("suffix", [".model", ".pt", ".pth"])
def test_the_command_runs_nothing_in_a_file(write, suffix, tmp_path):
    marker = tmp_path / "ran"
    write(tmp_path / f"a{suffix}", marker)
    command = [sys.executable, "-m", "mace_train", "import", f"a{suffix}", "output=b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (message,) = done.stderr.splitlines()
    assert f"a{suffix} cannot be read without running what is in it" in message
    assert "trust=true" in message
    assert not marker.exists()
    assert not (tmp_path / "b").exists()


def test_trust_is_said_in_one_line_before_the_file_is_loaded(tmp_path, monkeypatch, caplog):
    legacy(tmp_path / "a.model", tmp_path / "ran")
    settings = ImportSettings(
        model_file=str(tmp_path / "a.model"), output=str(tmp_path / "b"), trust=True
    )

    def load(path):
        assert path == tmp_path / "a.model"
        assert caplog.messages[0].startswith(f"trust=true: {path} is a pickle, and loading it")
        raise InputError("loaded")

    monkeypatch.setattr(importing, "read_mace_torch", load)
    with pytest.raises(InputError, match="loaded"):
        import_model(settings)
    assert not (tmp_path / "ran").exists()


def test_modules_of_other_packages_are_refused(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a.model")
    with pytest.raises(InputError, match="a Sequential cannot be imported"):
        header_and_tensors(read_file(tmp_path / "a.model"))
    model = read_file(tmp_path / "a.model")
    model.module = "elsewhere"
    with pytest.raises(RestrictedPickleError, match=r"a elsewhere\.Sequential, which is none"):
        header_and_tensors(model)
    with_pickle(pickle.dumps(os.system, protocol=2), tmp_path / "b.model")
    with pytest.raises(InputError, match="holds a type"):
        read_file(tmp_path / "b.model")


def test_a_module_that_holds_itself_again_and_again_is_one_message(tmp_path):
    """60 levels, each of which has the next one twice, are 2^60 modules in a small file."""
    module = torch.nn.Linear(1, 1)
    for _ in range(60):
        module = torch.nn.Sequential(module, module)
    torch.save(module, tmp_path / "a.model")
    with pytest.raises(RestrictedPickleError, match="more than 10000 modules"):
        header_and_tensors(read_file(tmp_path / "a.model"))
    module = torch.nn.Sequential()
    module._modules["itself"] = module
    torch.save(module, tmp_path / "b.model")
    with pytest.raises(RestrictedPickleError, match="RecursionError"):
        header_and_tensors(read_file(tmp_path / "b.model"))


def test_a_deep_header_is_one_message(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(
        InputError, match=r"a\.json is not JSON .*; it is the header of the state dict"
    ):
        read_header(tmp_path / "a.safetensors", None)
