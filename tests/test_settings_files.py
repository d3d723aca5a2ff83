"""Settings that somebody else wrote call nothing, whatever Hydra would do with them."""

import subprocess
import sys

import pytest
import yaml

from mace_train.errors import InputError
from mace_train.settings_files import check_settings_files

TOUCH = {"_target_": "os.system", "command": "touch ran"}
HARMFUL = {
    "callback": {"hydra": {"callbacks": {"x": TOUCH}}},
    "launcher": {"hydra": {"launcher": TOUCH}},
    "logging": {"hydra": {"job_logging": {"root": {}, "formatters": {"f": {"()": "os.system"}}}}},
    "import": {"hydra": {"hydra_logging": {"handlers": {"f": {"stream": "ext://os.system"}}}}},
    "text": {"hydra": {"callbacks": {"x": "${oc.create:{_target_:os.system}}"}}},
    "in a list": {"defaults": ["train"], "a": [{"b": [TOUCH]}]},
}


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("option", ["--config-dir", "-cd", "--config-dir=", "hydra.searchpath="])
def test_what_would_be_called_is_refused(name, option, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "evil.yaml").write_text(yaml.safe_dump(HARMFUL[name]))
    value = f"[file://{tmp_path}]" if option.startswith("hydra") else str(tmp_path)
    words = [option + value] if option.endswith("=") else [option, value]
    with pytest.raises(InputError, match=r"evil\.yaml: .* would be called or imported by Hydra"):
        check_settings_files(["max_num_epochs=1", *words])


def test_folders_that_files_name_are_looked_at(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    content = {"hydra": {"searchpath": [f"file://{tmp_path / 'b'}"]}}
    (tmp_path / "a" / "a.yaml").write_text(yaml.safe_dump(content))
    check_settings_files(["--config-dir", str(tmp_path / "a")])
    (tmp_path / "b" / "evil.yaml").write_text(yaml.safe_dump(HARMFUL["callback"]))
    with pytest.raises(InputError, match=r"evil\.yaml"):
        check_settings_files(["--config-dir", str(tmp_path / "a")])


def test_ordinary_settings_pass(tmp_path):
    launcher = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    content = {"optimizer": {"lr": 0.1}, "hydra": {"launcher": {"_target_": launcher}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    check_settings_files(["--config-dir", str(tmp_path), "--config-name=mine"])
    check_settings_files(["--config-dir", str(tmp_path / "not there")])
    (tmp_path / "tag.yaml").write_text("a: !!python/object/apply:os.system ['touch ran']\n")
    with pytest.raises(InputError, match="not a YAML file that can be read"):
        check_settings_files(["--config-dir", str(tmp_path)])


def test_the_command_calls_nothing(tmp_path):
    content = {"defaults": ["train", "_self_"], **HARMFUL["callback"], "data_dir": "x"}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "mace_train", "train", "--config-dir", ".", "--config-name"]
    done = subprocess.run([*command, "evil"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "hydra.callbacks.x._target_='os.system' would be called" in done.stderr
    assert not (tmp_path / "ran").exists()
