"""Import and export as commands: files of every kind, what is refused, the process apart."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mace_train.errors import InputError
from mace_train.interop import export_model as exporting
from mace_train.interop import import_model as importing
from mace_train.interop import subprocess_client, subprocess_worker
from mace_train.interop.equivalence import check_equivalence
from mace_train.interop.export_model import export_model
from mace_train.interop.import_model import import_model
from mace_train.interop.state_dict import header_for, to_mace_torch_state_dict
from mace_train.settings import ExportSettings, ImportSettings
from mace_train.train.checkpoint import load_model, model_header, save, with_prefix
from tests.conftest import run_command
from tests.model.mace_torch import mace_torch_model
from tests.model.systems import model_of

NUMBERS = (1, 6, 8)


@pytest.fixture
def trained(tmp_path):
    """A folder as a training leaves it."""
    model = model_of(NUMBERS, max_ell=1, pair_repulsion=True, heads=("pbe", "scan"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save(
        tmp_path / "run" / "checkpoints" / "best.safetensors",
        with_prefix("model.", dict(model.named_parameters())),
        {**model_header(model), "default_dtype": "float64"},
    )
    return tmp_path / "run"


@pytest.fixture
def without_mace(monkeypatch):
    for module in (importing, exporting):
        monkeypatch.setattr(module, "has_mace_torch", lambda: False)


@pytest.mark.usefixtures("without_mace")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_state_dict_both_ways(trained, tmp_path, suffix):
    file, again = tmp_path / "state.safetensors", tmp_path / "again"
    run_command("export", trained, "format=state_dict", f"output={file}")
    assert json.loads(file.with_suffix(".json").read_text())["heads"] == ["pbe", "scan"]
    if suffix == ".pt":  # as a checkpoint of mace-torch holds it
        torch.save({"model": load_file(file), "epoch": 3}, file.with_suffix(".pt"))
    run_command("import", file.with_suffix(suffix), f"output={again}")
    before, after = load_model(trained)[0], load_model(again)[0]
    assert after.data == before.data
    assert after.settings == before.settings
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
    one = tmp_path / "one"
    run_command("import", f"model={file}", "head=scan", "elements=[H,O]", f"output={one}")
    assert load_model(one)[0].data.head_names == ("scan",)
    assert load_model(one)[0].data.atomic_numbers == (1, 8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("mace_here")
def test_state_dicts_are_compared_where_mace_torch_is_at_hand(trained, tmp_path, monkeypatch):
    file, compared = tmp_path / "state.safetensors", []

    def check(what, graph, ours, theirs, *rest):
        compared.append(what)
        check_equivalence(what, graph, ours, theirs, *rest)

    for module in (importing, exporting):
        monkeypatch.setattr(module, "check_equivalence", check)
    export_model(
        ExportSettings(checkpoint=str(trained), format="state_dict", output=str(file), head="pbe")
    )
    import_model(ImportSettings(model_file=str(file), output=str(tmp_path / "again")))
    assert [what.startswith(str(file)) for what in compared] == [True, True]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("mace_here")
@pytest.mark.parametrize("way", ["import", "import with trust", "export"])
def test_a_difference_is_refused(way, trained, tmp_path, monkeypatch):
    """One weight that is not what the other side has."""
    if way.startswith("import"):
        theirs, trust = mace_torch_model(NUMBERS, max_ell=1), way == "import with trust"
        torch.save(theirs, tmp_path / "a.model")
        read, build = importing.read_mace_torch, importing.build_mace_torch

        def damaged(path):
            found = read(path)
            found.tensors["readouts.0.linear.weight"][0] += 1e-6
            return found

        def damaged_there(what, header, tensors):
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            tensors["readouts.0.linear.weight"][0] += 1e-6
            return build(what, header, tensors)

        monkeypatch.setattr(importing, "read_mace_torch", damaged)
        monkeypatch.setattr(importing, "build_mace_torch", damaged_there)
        with pytest.raises(InputError, match=r"energy differs by up to .* eV on 3 structures"):
            import_model(
                ImportSettings(
                    model_file=str(tmp_path / "a.model"), output=str(tmp_path / "b"), trust=trust
                )
            )
        assert not (tmp_path / "b").exists()
    else:
        make = exporting.to_mace_torch_state_dict

        def changed(model):
            tensors = make(model)
            tensors["interactions.0.linear.weight"][0] += 1e-6
            return tensors

        monkeypatch.setattr(exporting, "to_mace_torch_state_dict", changed)
        target = tmp_path / "out" / "b.model"
        with pytest.raises(InputError, match="differs by up to"):
            export_model(ExportSettings(checkpoint=str(trained), output=str(target)))
        assert list(target.parent.iterdir()) == []


def test_without_mace_torch(trained, tmp_path, monkeypatch):
    def missing():
        raise ImportError("No module named 'mace'")

    monkeypatch.setattr(subprocess_worker, "import_mace", missing)
    monkeypatch.setattr(subprocess_client, "run_worker", subprocess_worker.run_request)
    with pytest.raises(InputError, match=r"pip install 'mace-train\[interop\]'"):
        export_model(ExportSettings(checkpoint=str(trained), output=str(tmp_path / "a.model")))
    assert not (tmp_path / "a.model").exists()


def test_a_process_of_its_own(trained, tmp_path, capsys):
    """The real worker: what it writes is read again, and its errors are one message."""
    if not subprocess_client.has_mace_torch():
        pytest.skip("mace-torch is not installed")
    run_command("export", trained, "head=pbe", f"output={tmp_path / 'a.model'}")
    run_command("import", tmp_path / "a.model", f"output={tmp_path / 'b'}")
    (tmp_path / "c.model").write_bytes(b"\x80\x04N.")  # a pickle of None
    with pytest.raises(SystemExit):
        run_command("import", tmp_path / "c.model", f"output={tmp_path / 'd'}")
    message = capsys.readouterr().err.splitlines()[-1]
    assert "c.model" in message
    assert "Traceback" not in message


@pytest.mark.usefixtures("without_mace")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "nothing.model"], "no such file"),
        (["import", "half.safetensors"], "not a readable safetensors file"),
        (
            ["import", "bare.safetensors"],
            "bare.json cannot be read (No such file or directory); it is the",
        ),
        (["import", "number.pt"], "holds a float"),
        (["import", "state.safetensors", "elements=[H,Xy]"], "'Xy' is no element"),
        (["import", "state.safetensors", "elements=[H,Au]"], "does not know Au"),
        (["import", "state.safetensors", "head=hf"], "no head 'hf'"),
        (["import", "state.safetensors", "output=run"], "already holds"),
        (["export", "run", "output=state.json"], "already there"),
        (["export", "run", "format=state_dict", "output=a.pt"], "ends in .safetensors"),
        (["export", "run", "format=onnx", "output=a.onnx"], "mace-torch, state_dict"),
    ],
)
def test_messages(words, message, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = load_model(trained)[0]
    tensors = to_mace_torch_state_dict(model)
    for name in ("state", "bare"):
        save_file(tensors, f"{name}.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(header_for(model)))
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "state.safetensors").read_bytes()[:99])
    torch.save(1.0, "number.pt")
    with pytest.raises(SystemExit) as caught:
        run_command(*words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
