"""Bad input: one clear message, exit code 2, nothing half-written. One named case each."""

from pathlib import Path

import pytest

from tests.bad_input import files, runs
from tests.bad_input.place import Place
from tests.conftest import run_command

CASES = files.CASES | runs.CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_one_message(case, tmp_path, xyz, prepared, trained, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, xyz, prepared, trained)
    arguments = case(place)
    before = contents(tmp_path)
    capsys.readouterr()
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        run_command(*arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert message.count("mace-train: error: ") == 1
    assert "Traceback" not in message
    for word in CASES[case]:
        assert word in message
    assert contents(tmp_path) == before, "files remain or were changed"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes, but for what preprocess continues from."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in sorted(folder.rglob("*"))
        if not any(part.endswith(".partial") for part in path.relative_to(folder).parts)
    }
