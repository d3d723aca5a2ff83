"""YAML files that cannot be read: one line, with the place and the remedy."""

import pytest

from mace_train.errors import InputError
from mace_train.yaml_files import read_yaml

WRONG = {
    "syntax": (b"scaling: false data_dir: x\n", r"line 1, column \d+: mapping values"),
    "encoding": (b"a: \xff\n", "not text in UTF-8"),
    "depth": (b"[" * 5000, "nested too deeply"),
    "a tag": (b"a: !!python/object/apply:os.system ['touch ran']\n", "could not determine"),
    "a date": (b"a: 2020-13-45\n", "month must be in 1..12"),
    "truth": (b"a: !!bool x\n", "a value cannot be read"),
    "empty": (b"a: !!int ''\n", "a value cannot be read"),
    "moment": (b"a: !!timestamp x\n", "a value cannot be read"),
    "digits": (b"a: " + b"9" * 4400, "a value cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_yaml_is_named_in_one_line(name, tmp_path):
    content, words = WRONG[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        read_yaml(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: not ")
    assert message.endswith("; correct it")
    assert "\n" not in message


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
