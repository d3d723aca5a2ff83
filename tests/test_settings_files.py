"""Settings that somebody else wrote call nothing, whatever Hydra would do with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mace_train.errors import InputError
from mace_train.settings_files import check_content, check_size
from tests.conftest import run_command

TRAIN = {"defaults": ["train", "_self_"], "data_dir": "x"}
CALL = {"_target_": "mace_train.child_process.run_child", "command": ["touch", "ran"]}
LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
NESTED = (
    '${oc.${hydra.job.env_set.FN}:"{x: {_tar${hydra.job.env_set.MID}: '
    'mace_train.child_process.run_child, command: [touch, ran]}}"}'
)
FORMATTER = {"version": 1, "formatters": {"f": {"()": "os.system", "command": "touch ran"}}}
HANDLER = {"version": 1, "handlers": {"f": {"class": "evil.Evil"}}, "root": {"handlers": ["f"]}}
IMPORT = {"version": 1, "handlers": {"f": {"class": "logging.StreamHandler", "stream": "ext://e"}}}
IN_HYDRA = {
    "callback": {"callbacks": {"x": CALL}},
    "launcher": {"launcher": CALL},
    "factory of logging": {"job_logging": FORMATTER},
    "class of logging": {"job_logging": HANDLER},
    "import of logging": {"hydra_logging": IMPORT},
    "text": {"callbacks": "${oc.create:{x:{_target_:os.system}}}"},
    "nested": {"job": {"env_set": {"FN": "decode", "MID": "get_"}}, "callbacks": NESTED},
    "other node": {"callbacks": "${data}"},
    "environment": {"job": {"env_set": {"PYTHONPATH": "evil"}}},
    "copied environment": {"job": {"env_copy": ["PATH"]}},
    "working folder": {"run": {"dir": "evil"}, "job": {"chdir": True}},
    "overrides": {"overrides": {"hydra": ["hydra.job.env_set.PATH=evil"]}},
    "parameter": {"sweeper": {"params": {"hydra.job.env_set.PATH": "evil"}}},
    "parameter with +": {"sweeper": {"params": {"+hydra.job.env_set.PATH": "evil"}}},
    "parameter with @": {"sweeper": {"params": {"+model@hydra.job.env_set": "tiny"}}},
    "parameter with ..": {"sweeper": {"params": {"x/../hydra/callbacks": "evil"}}},
    "parameter in a tree": {"sweeper": {"params": {"hydra": {"verbose": True}}}},
    "setup": {"launcher": {"_target_": LAUNCHER, "setup": ["touch ran"]}},
    "options of srun": {"launcher": {"additional_parameters": {"wrap": "touch ran"}}},
    "line break": {"launcher": {"partition": "gpu\ntouch ran"}},
    "package in the search path": {"searchpath": ["pkg://evil"]},
    "variable in the search path": {"searchpath": ["${oc.env:EVILDIR,evil}/x"]},
    "whole": "${data}",
}


def write(path: Path, content: object, header: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + (content if isinstance(content, str) else yaml.safe_dump(content)))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder, with Python files that say so when somebody imports them."""
    monkeypatch.chdir(tmp_path)
    for name in ("evil/sitecustomize.py", "evil/__init__.py", "e.py"):
        write(tmp_path / name, "open('ran', 'w').close()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def refused(place: Path, capsys, *words: str, command: str = "train") -> str:
    """The one message of a command that must not have run anything."""
    environment = dict(os.environ)
    modules = set(sys.modules)
    with pytest.raises(SystemExit) as failed:
        run_command(command, *words)
    for name in ("HYDRA_FULL_ERROR", "MPLBACKEND"):  # that the command line itself sets
        os.environ.pop(name, None)
        environment.pop(name, None)
    assert not (place / "ran").exists()
    assert dict(os.environ) == environment
    assert not {"evil", "e"} & (set(sys.modules) - modules)
    assert failed.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("name", IN_HYDRA)
def test_settings_of_hydra(name, place, capsys):
    write(place / "conf/b.yaml", {**TRAIN, "data": {"x": CALL}, "hydra": IN_HYDRA[name]})
    message = refused(place, capsys, "--config-dir=conf", "--config-name=b")
    assert "b.yaml: " in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("defaults: [train, _self_]\nhydra: {job: {env_set: {A: b}}}\n", "hydra.job.env_set.A="),
        ("a: [", "not a YAML file that can be read"),
        ("defaults: [train, _self_]\nlr: 1\n", "'lr'"),
        (None, "exp"),
    ],
)
def test_a_file_that_changes_in_the_middle_of_a_sweep(
    content, message, tmp_path, monkeypatch, capsys
):
    file, done = tmp_path / "exp.yaml", []
    file.write_text("defaults: [train, _self_]\n")

    def first_job(settings):
        done.append(settings.seed)
        if content is None:
            file.unlink()
        else:
            file.write_text(content)

    monkeypatch.setattr("mace_train.train.train.train", first_job)
    words = ["train", "--multirun", f"--config-dir={tmp_path}", "--config-name=exp", "seed=1,2,3"]
    with pytest.raises(SystemExit) as stop:
        run_command(*words, "data_dir=a", f"output={tmp_path / 'sweep'}")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert done == [1]
    assert message in said.splitlines()[-1]
    assert said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["nested", "environment", "class of logging"])
@pytest.mark.parametrize(
    "words", [["+exp=b"], ["+lnk=b"], ["+exp@hydra=c"], ["hydra=b"], ["--multirun", "+exp=b,b"]]
)
def test_places_of_a_file(name, words, place, capsys):
    content = IN_HYDRA[name]
    write(place / "conf/exp/b.yaml", {"hydra": content}, "# @package _global_\n")
    write(place / "conf/exp/c.yaml", content)
    write(place / "conf/hydra/b.yaml", content)
    (place / "conf/lnk").symlink_to("exp")
    message = refused(place, capsys, "--config-dir=conf", *words, "data_dir=x")
    file = "hydra/b" if words == ["hydra=b"] else f"exp/{words[-1][-1]}"
    assert f"conf/{file}.yaml: " in message


PYTHONPATH = {"PYTHONPATH": "evil"}
GLOBAL = "# @package _global_\n"
PACKAGES = {
    "header": ("# @package hydra.job.env_set\n", PYTHONPATH, ["+exp=b"]),
    "of the command line": ("", PYTHONPATH, ["+exp@hydra.job.env_set=b"]),
    "with a name behind": ("", {"x": CALL}, ["+exp@hydra.callbacks:y=b"]),
    "behind _global_": ("# @package x_global_.hydra.job.env_set\n", PYTHONPATH, ["+exp=b"]),
    "in a defaults list": (GLOBAL, {"defaults": ["/exp/c@_global_.hydra.job.env_set"]}, ["+exp=b"]),
    "of a group": (GLOBAL, {"defaults": [{"/exp@_global_.hydra.job.env_set": "c"}]}, ["+exp=b"]),
    "of another search path": (GLOBAL, {"defaults": ["/other/d@_global_.hydra"]}, ["+exp=b"]),
    "put together": (GLOBAL, {"defaults": [{"/ra/job@hyd_group_.env_set": "c"}]}, ["+exp=b"]),
    "of settings of ours": (
        GLOBAL,
        {"defaults": ["/model/tiny@_global_.hydra.callbacks"]},
        ["+exp=b"],
    ),
    "of Hydra's": (
        GLOBAL,
        {"defaults": ["/hydra/launcher/basic@_global_.hydra.callbacks.x"]},
        None,
    ),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages(name, place, capsys):
    header, content, words = PACKAGES[name]
    write(place / "conf/exp/b.yaml", content, header)
    write(place / "conf/exp/c.yaml", PYTHONPATH)
    write(place / "conf/ra/job/c.yaml", PYTHONPATH)
    write(place / "more/other/d.yaml", {"job": {"env_set": PYTHONPATH}})
    paths = ["--config-dir=conf", "hydra.searchpath=[more]", "data_dir=x"]
    refused(place, capsys, *(words or ["+exp=b"]), *paths)


@pytest.mark.parametrize(
    "named", ["/outside", "../outside", "//{}/outside", "/../../outside", "x/../../outside"]
)
def test_files_outside(named, place, capsys):
    write(place / "outside.yaml", {"hydra": IN_HYDRA["callback"]}, "# @package _global_\n")
    write(place / "conf/b.yaml", {"defaults": ["train", named.format(place), "_self_"]})
    refused(place, capsys, "--config-dir=conf", "--config-name=b", "data_dir=x")


@pytest.mark.parametrize("folder", ["more", "file://{}/more"])
def test_folders_that_files_name(folder, place, capsys):
    write(place / "more/exp/c.yaml", {"hydra": IN_HYDRA["callback"]}, "# @package _global_\n")
    content = {"defaults": ["train", {"exp": "c"}, "_self_"]}
    content["hydra"] = {"searchpath": [folder.format(place)]}
    write(place / "conf/b.yaml", content)
    message = refused(place, capsys, "--config-dir=conf", "--config-name=b", "data_dir=x")
    assert "more/exp/c.yaml: hydra.callbacks.x._target_=" in message


def test_programs_in_settings_of_commands(place, capsys):
    base = {"defaults": ["tune", "_self_"], "training": ["seed=1,2", "data_dir=x"], "trials": 1}
    for wrong in (
        {"launch": "touch ran"},
        {"training": ["seed=1,2", "hydra.job.env_set.PATH=evil"]},
        {"training": ["seed=1,2", "+model@hydra.job.env_set=tiny"]},
        {"training": "${a}", "a": ["hydra.verbose=true"]},
    ):
        write(place / "conf/b.yaml", {**base, **wrong})
        message = refused(place, capsys, "--config-dir=conf", "--config-name=b", command="tune")
        assert "could start any program; give it on the command line" in message
    write(place / "conf/b.yaml", {"defaults": ["import", "_self_"], "trust": True})
    words = ["x.model", "--config-dir=conf", "--config-name=b"]
    message = refused(place, capsys, *words, command="import")
    assert "trust='True' could start any program" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [*a]\n", "aliases"),
        ("a0: &a0 [x]\n", "aliases"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "levels"),
        ("a: '" + "x" * (1 << 20) + "'", "bytes"),
        ("a: !!python/object/apply:os.system ['touch ran']\n", "tag"),
        ("a: [\n", "line 2"),
        (b"\xff\xfe\x00", "not a YAML file"),
        ("a: 1\n---\nb: 2\n", "not a YAML file"),
    ],
)
def test_yaml_that_costs_much_or_is_none(content, message, place, capsys):
    if str(content).startswith("a0"):
        content += "".join(
            f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10)
        )
    path = place / "conf/b.yaml"
    write(path, "")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"b\.yaml: .*{message}"):
        check_size(path)
    refused(place, capsys, "--config-dir=conf", "--config-name=b")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:x}",
        "${oc.decode:x}",
        "${oc.deprecated:hydra}",
        "${oc.select:hydra}",
        "${oc.${a}:x}",
        "${oc.env:X,${oc.decode:x}}",
        "${oc.env:X,'}${oc.decode:x}'}",
        "${hydra:job.name}",
        "${ oc.decode:x}",
        "\\\\${oc.decode:x}",
        "\\${${oc.decode:x}}",
        "a\nb",
    ],
)
def test_text(text):
    with pytest.raises(InputError, match=r"would be called|control character"):
        check_content(Path("b.yaml"), {"a": [{"b": text}]})
    with pytest.raises(InputError, match=r"would be called|control character"):
        check_content(Path("b.yaml"), {text: 1})


def test_ordinary_settings(place, capsys, monkeypatch):
    """What users do write, in files that others are next to."""
    content = {
        **TRAIN,
        "output": "runs/${now:%Y}/${seed}-${oc.env:NOBODY,default}",
        "name": "\\${text}",
        "optimizer": {"lr": 0.1},
        "hydra": {
            "sweep": {"subdir": "${hydra.job.override_dirname}"},
            "launcher": {"_target_": LAUNCHER, "partition": "gpu", "timeout_min": 10},
            "sweeper": {"params": {"seed": "1,2", "+exp": "a", "optimizer.lr": "range(1,3)"}},
            "job": {"config": {"override_dirname": {"exclude_keys": ["output"]}}},
            "mode": "MULTIRUN",
        },
    }
    check_content(Path("b.yaml"), content)
    del content["hydra"], content["name"]
    content["hydra"] = {"sweep": {"subdir": "${hydra.job.override_dirname}"}}
    content["defaults"] = ["train", {"override hydra/launcher": "basic"}, {"/sub/exp@_here_": "c"}]
    content["defaults"] += ["_self_"]
    write(place / "conf/b.yaml", "a: &a {x: 1}\nb: [*a, *a]\n")
    check_size(place / "conf/b.yaml")
    write(place / "conf/b.yaml", {**content, "defaults": ["train", "_self_"]})
    write(place / "conf/other.yaml", {"services": {"()": "a\nb"}})
    os.mkfifo(place / "conf/pipe.yaml")
    run_command("train", "--config-dir=conf", "--config-name=b", "--cfg", "job")
    assert "lr: 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--config-dir", "--config-di"])
def test_a_process(option, place):
    write(place / "conf/b.yaml", {**TRAIN, "hydra": IN_HYDRA["callback"]})
    write(place / "conf/exp/a.yaml", {"hydra": IN_HYDRA["nested"]}, "# @package _global_\n")
    for words in (["--config-name", "b"], ["+exp=a", "data_dir=x"]):
        command = [sys.executable, "-m", "mace_train", "train", option, "conf", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "hydra.callbacks" in done.stderr or "--config-di" in done.stderr
        assert not (place / "ran").exists()


def test_a_pipe_is_no_file(place, capsys):
    (place / "conf").mkdir()
    os.mkfifo(place / "conf/b.yaml")
    assert "no such file" in refused(place, capsys, "--config-dir=conf", "--config-name=b")


def test_an_option_is_not_shortened(place):
    write(place / "conf/b.yaml", {**TRAIN, "hydra": {"callbacks": {"x": CALL}}})
    words = ["inspect", "nowhere", "--config-di", "conf", "--config-name", "b"]
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown option --config-di" in done.stderr
