"""Wrong command lines and YAML files of users: one message, which says what is right."""

import pytest

from mace_train._paths import CONFIGS
from mace_train.cli_commands import COMMANDS
from mace_train.cli_errors import shortened, unknown_key_message
from mace_train.cli_help import groups_of, valid_names
from tests.conftest import run_command

HELP = "`mace-train train --help`"
WRONG = [
    (["name=${nope}"], ("name: Interpolation key 'nope' not found", "${oc.env:HOME}")),
    (["name=${oc.env:NOT_SET}"], ("name:", "'NOT_SET' not found", "${seed}")),
    (["name='${'"], ("an interpolation ${...} cannot be read", "write \\${")),
    (["name=${oc.decode:'['}"], ("an interpolation ${...} cannot be read",)),
    (["output=${output}"], ("output: Recursive interpolation",)),
    (["seed={a:1}"], ("seed: ", "give a whole number, such as 123")),
    (["seed=null"], ("seed: ", "give a whole number, such as 123")),
    (["seed=" + 4400 * "9"], ("seed: a number of more than 4300 digits", "range")),
    (["model.num_channels=1e9"], ("128, in digits, without point and exponent", "at most 65536")),
    (["model.radial_MLP=[64,1e3]"], ("in digits", "at least 1 and at most")),
    (["ema=maybe"], ("ema: ", "give true or false")),
    (["name={a:1}"], ("name: ", "give text")),
    (["clip_grad=x"], ("clip_grad: ", "give a number or null, such as 10.0")),
    (["model.radial_MLP=[a]"], ("model.radial_MLP: ", "list of whole numbers")),
    (["model.radial_MLP=[[8]]"], ("model.radial_MLP: [8] is in the list; give a list of whole",)),
    (["model.radial_MLP=[{a:1}]"], ("model.radial_MLP: {'a': 1} is in the list",)),
    (["model.radial_MLP=${name}", "name=abc"], ("model.radial_MLP='abc'", "whole numbers")),
    (["model=[1]"], ("model=[1]", "density, large, medium")),
    (["model=null"], ("model=null", "density, large, medium")),
    (["model=tinny"], ("model=tinny is not known (did you mean tiny?); model is one of: ",)),
    (["loss=hubr"], ("loss=hubr is not known (did you mean huber?)",)),
    (
        ["data_dir=a", "model.interaction=density"],
        ("did you mean RealAgnosticDensityInteractionBlock?",),
    ),
    (
        ["data_dir=a", "cluster.kernels=cudda"],
        ("cluster.kernels='cudda' is not known (did you mean cuda?)",),
    ),
    (["data_dir=a", "model.embedding_specs={q: {type: float, per: graph}}"], ("mean continuous?",)),
    (["modle=tiny"], ("unknown setting 'modle' (did you mean model?)", ", model, ", HELP)),
    (["modle.max_L=1"], ("(did you mean model?)",)),
    (["structures_per_group=1"], ("unknown setting 'structures_per_group'",)),
    (["checkpoint=a"], ("did you mean foundation.checkpoint?",)),
    (["model=../../x"], ("no such YAML file", "--config-dir")),
    (["=1"], ("'=1' names no setting", "key=value")),
    (["a..b=1"], ("'a..b' is no name of a setting",)),
    (["~nope"], ("unknown setting 'nope'", HELP)),
    (["optimizer.learning=1"], ("unknown setting 'optimizer.learning'", "optimizer.lr")),
    (["--cfg"], ("--cfg", "expected one argument", "`mace-train --help`")),
    (["--cfg=x"], ("invalid choice: 'x'",)),
    (["-x"], ("unknown option -x",)),
    (["--experimental-rerun=x"], ("--experimental-rerun cannot be used", "--config-name repeat")),
    (["--config-path=x"], ("--config-path cannot be used", "--config-dir")),
    (["--config-name=nope"], ("--config-name nope", "--config-dir FOLDER")),
    (["--config-dir=nope"], ("--config-dir", "no such folder")),
    (["name=choice(1,2)"], ("requires --multirun", HELP)),
]


GROUPS = [
    (command, group)
    for command in COMMANDS
    for group in groups_of(COMMANDS[command].schema, CONFIGS)
]


@pytest.mark.parametrize(("command", "group"), GROUPS)
def test_a_misspelt_group_means_the_group(command, group):
    misspelt = group[0] + group[2] + group[1] + group[3:]
    message = unknown_key_message(misspelt, command, COMMANDS[command].schema)
    assert f"unknown setting {misspelt!r} (did you mean {group}?)" in message
    assert f" {group}" in message.partition("valid settings of")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_without_its_group_means_one_of_its_name(command):
    valid = valid_names(COMMANDS[command].schema)
    first = {name.partition(".")[0] for name in valid}
    for leaf in {name.rpartition(".")[2] for name in valid} - first:
        message = unknown_key_message(leaf, command, COMMANDS[command].schema)
        assert f".{leaf}?)" in message or leaf == "epochs"  # of train: max_num_epochs


def test_an_unknown_command_names_the_nearest(capsys):
    assert "unknown command 'trian' (did you mean train?); give one of" in message_of(
        ["trian"], capsys
    )


@pytest.mark.parametrize(("words", "parts"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_command_lines(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = message_of(["train", *words], capsys)
    assert all(part in message for part in parts), message
    assert len(message) < 900
    assert list(tmp_path.iterdir()) == []


def message_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        run_command(*words)
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert text.startswith("mace-train: error: ")
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert "usage:" not in text
    return text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [1, 2\n", "line 2, column 1"),
        ("a: 'b\n", "line 2, column 1"),
        ("seed: 1\n", "must begin with `defaults: [train, _self_]`"),
        ("1.5\n", "must map settings to values"),
        ("defaults: [nope]\n", "nope"),
        ("defaults: [train, _self_]\nseed: x\n", "give a whole number, such as 123"),
        ("defaults: [train, _self_]\na: !!python/object/apply:os.system [id]\n", "python/object"),
    ],
)
def test_wrong_yaml_files(content, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.yaml").write_text(content)
    words = ["train", "--config-dir", str(tmp_path), "--config-name", "exp"]
    message = message_of(words, capsys)
    assert part in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["exp.yaml"]


def test_long_words_are_shortened():
    assert shortened("seed=" + "9" * 5000 + " is large") == (
        "seed=" + "9" * 75 + "..." + "9" * 20 + " (5005 characters) is large"
    )
    assert shortened("a " * 500) == "a " * 500
