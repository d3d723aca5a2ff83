"""The page about the data: its Python runs as written."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "mace_train" / "data" / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, prepared, monkeypatch, capsys):
    code = SNIPPETS[number].replace("num_workers=2", "num_workers=0")
    monkeypatch.chdir(prepared.parent)
    code = code.replace("prepared/", f"{prepared.name}/")
    names: dict[str, object] = {}
    exec(compile(code, f"snippet {number}", "exec"), names)
    assert "vectors" in names
    if "h5py" in code:
        *_, longest = capsys.readouterr().out.split()
        assert float(longest) < 4.0
        assert len(code.strip().splitlines()) <= 13


def test_both_snippets_are_found():
    assert len(SNIPPETS) == 2
