"""What is wrong in the settings is found before a model is loaded, which may be a download."""

import pytest

from mace_train.interop import export_model
from tests.conftest import run_command

SET = [
    ([], "give either {files}=FILE or data_dir=FOLDER (with split=...)"),
    (["{files}={xyz}", "data_dir={data}"], "they are both given"),
    (["{files}=nowhere.xyz"], "nowhere.xyz: no such file"),
    (["{files}=nowhere*.xyz"], "nowhere*.xyz: no file matches this pattern"),
    (["data_dir=nowhere"], "data_dir=nowhere: no such folder"),
    (["data_dir={data}", "split=test"], "has no test/; it holds train, valid"),
    (["{files}={xyz}", "info_keys=5"], "info_keys=5 must map names of inputs"),
]
RUN = [
    (["structure=nowhere.xyz"], "structure=nowhere.xyz: no such file"),
    (["structure={xyz}", "index=0", "repeat=[2,1,1]"], "periodic along [False, False, False] only"),
    (["structure={xyz}", "arrays_keys=5"], "arrays_keys=5 must map names of inputs"),
]
CASES = [
    *((["evaluate", *words], message) for words, message in SET),
    *((["descriptors", "output=d.h5", *words], message) for words, message in SET),
    *((["select", "output=s.xyz", "n=2", *words], message) for words, message in SET),
    *((["md", *words], message) for words, message in RUN),
    *((["relax", *words], message) for words, message in RUN),
    (["relax", "structure={xyz}", "index=0", "relax_cell=true"], "its cell has no volume"),
    (["export", "output=a.model"], "format=mace-torch: needs mace-torch; pip install"),
]


@pytest.mark.parametrize(("words", "message"), CASES)
def test_settings_before_the_model(words, message, xyz, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_model, "has_mace_torch", lambda: False)
    files = "test_file" if words[0] == "evaluate" else "structures"
    names = {"xyz": xyz, "data": prepared, "files": files}
    assert message.format(**names) in said(
        [*(word.format(**names) for word in words), "checkpoint=nowhere"], capsys
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("elements=[H,Xy]", "'Xy' is no element"),
        ("header=nowhere.json", "header=nowhere.json: no such file"),
    ],
)
def test_settings_of_an_import_before_the_file(word, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.model").write_bytes(b"no model")
    assert message in said(["import", "a.model", word], capsys)


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which a command is refused."""
    with pytest.raises(SystemExit) as stop:
        run_command(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err
