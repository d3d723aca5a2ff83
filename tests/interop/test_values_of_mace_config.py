"""Values in a YAML file of mace_run_train, which ConfigArgParse hands on as text or not at all."""

from itertools import product

import pytest

from mace_train.interop.arguments import ARGUMENTS
from mace_train.interop.from_mace_config import _of_file
from tests.conftest import run_command
from tests.model.mace_torch import import_mace


def test_values_in_yaml_are_what_mace_torch_makes_of_them(tmp_path, capsys):
    """null is left out, a false flag too, all else is text: as ConfigArgParse does it."""
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.tools import build_default_arg_parser

    theirs, file, n_equal = build_default_arg_parser(), tmp_path / "run.yaml", 0
    texts = ("null", "true", "false", "None", "'y'", "'on'", "1", "0", "1e-3", "[]")
    for name, row in ARGUMENTS.items():
        for option, text in product(filter(None, (name, row.alias)), texts):
            if not row.ours or name == "name":
                continue
            file.write_text(f"name: x\n{option}: {text}\n")
            try:
                value = getattr(theirs.parse_args([f"--config={file}"]), name)
            except (SystemExit, AssertionError):  # it refuses
                continue
            assert str(_of_file(str(file)).get(name, row.default)) == str(value), (option, text)
            n_equal += 1
    assert n_equal > 400
    capsys.readouterr()  # the messages of their parser


@pytest.mark.parametrize(
    ("line", "setting", "value", "said"),
    [
        ("clip_grad: null", "clip_grad", None, "takes its default, 10.0; none is None"),
        ("clip_grad: None", "clip_grad", "null", ""),
        ("amsgrad: false", "optimizer.amsgrad", None, "amsgrad: False makes amsgrad true"),
        ("valid_file: null", "data.valid_file", None, ""),
    ],
)
def test_what_yaml_does_not_change_is_said(line, setting, value, said, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\ntrain_file: a.xyz\n{line}\n")
    run_command("from-mace-config", file)
    printed = capsys.readouterr()
    assert (f" {setting}={value}" in printed.out) == (value is not None)
    assert said in printed.err
    assert ("warning" in printed.err) == bool(said)
