"""Settings of mace_run_train: every argument is mapped or has a reason; the commands compose."""

import re
import shlex

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from mace_train import cli
from mace_train._paths import CONFIGS
from mace_train.cli_help import valid_names
from mace_train.errors import InputError
from mace_train.interop.arguments import ARGUMENTS, table
from mace_train.interop.from_mace_config import _SPECIAL, as_yaml, translate
from mace_train.settings.model import DENSITY, DENSITY_RESIDUAL, NONLINEAR
from tests.conftest import run_command
from tests.model.mace_torch import import_mace

TYPICAL = {
    "name": "water-1",
    "model": "ScaleShiftMACE",
    "train_file": "a file.xyz",
    "valid_fraction": 0.05,
    "r_max": 4.5,
    "hidden_irreps": "64x0e + 64x1o",
    "E0s": "{1: -13.6, 8: -432.1}",
    "loss": "universal",
    "batch_size": 5,
    "max_num_epochs": 100,
    "swa": True,
    "ema": True,
    "scheduler": "ExponentialLR",
    "lr_params_factors": '{"embedding_lr_factor": 0.0, "readouts_lr_factor": 2.0}',
    "config_type_weights": '{"Default": 1.0, "bulk": 2.0}',
    "default_dtype": "float32",
    "device": "cuda",
    "distance_transform": "Agnesi",
    "error_table": "TotalMAE",
}


def test_every_argument_of_mace_torch_is_here_with_its_default():
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.tools import build_default_arg_parser

    actions = {a.dest: a for a in build_default_arg_parser()._actions if a.dest != "help"}
    assert set(actions) == set(ARGUMENTS)
    for name, action in actions.items():
        row = ARGUMENTS[name]
        default = int(action.default) if name == "plot_frequency" else action.default
        assert default == row.default, name
        options = {f"--{option}" for option in (name, row.alias) if option}
        if name == "allow_random_padding_pt":
            options.discard(f"--{name}")
        assert set(action.option_strings) == options, name
        assert (action.nargs == 0) == (row.kind == "flag"), name
        assert (getattr(action.type, "__name__", "") == "str2bool") == (row.kind == "bool"), name


def test_every_argument_is_mapped_or_has_a_reason():
    names = {
        command: set(valid_names(cli.COMMANDS[command].schema))
        for command in ("import", "preprocess", "train")
    }
    for name, row in ARGUMENTS.items():
        assert bool(row.ours) != bool(row.instead), name
        for place in row.ours.split("; ") if row.ours else ():
            command, setting = place.split(": ")
            assert setting in names[command] | {"weights"}, name
    assert {name for name in _SPECIAL if not ARGUMENTS[name].ours} == set()


@pytest.fixture
def typical(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(TYPICAL))
    return file


def test_typical_run(typical):
    words = ["--lr=0.02", "--max_num_epochs", "80"]
    equal, without = translate(str(typical), words)
    assert (equal, without) == translate(None, [*words, f"--config={typical}"])
    assert equal["preprocess"] == {
        "output": "water-1/prepared",
        "r_max": 4.5,
        "data.train_file": "a file.xyz",
        "data.valid_fraction": 0.05,
        "data.E0s": {1: -13.6, 8: -432.1},
    }
    train = equal["train"]
    assert train["loss.loss"] == "universal"
    assert train["loss.stress_weight"] == 1.0
    assert "loss.forces_weight" not in train  # 100 is the default of both
    assert train["optimizer.lr"] == 0.02
    assert train["optimizer.lr_params_factors"] == {"embedding": 0.0, "readouts": 2.0}
    assert train["loss.config_type_weights"] == {"Default": 1.0, "bulk": 2.0}
    assert train["stage_two.enabled"] is True
    assert train["stage_two.start"] == 60  # three quarters of 80
    assert train["max_num_epochs"] == 80
    assert train["batching.packer"] == "fixed_count"
    assert train["model.num_channels"] == 64
    assert "model.max_L" not in train
    assert "ema" not in train
    assert train["scheduler.scheduler"] == "exponential"
    assert [line.partition(":")[0] for line in without] == [
        "--error_table=TotalMAE",
        "--swa with --lr_params_factors",
    ]


def test_defaults_that_differ_are_written_out():
    equal, without = translate(None, ["--name=a", "--train_file=a.xyz"])
    assert without == []
    assert equal["preprocess"] == {"output": "a/prepared", "data.train_file": "a.xyz"}
    assert equal["train"] == {
        "name": "a",
        "default_dtype": "float64",
        "model.model": "MACE",
        "ema": False,
        "max_num_epochs": 2048,
        "data_dir": "a/prepared",
        "output": "a/run",
        "batching.packer": "fixed_count",
        "cluster.device": "cpu",
    }


def test_printed_commands_and_yaml_compose_into_the_same(typical, capsys, tmp_path):
    run_command("from-mace-config", typical, f"output={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    equal, _ = translate(str(typical), [])
    for command, values in equal.items():
        (line,) = (x for x in printed.splitlines() if x.startswith(f"mace-train {command}"))
        schema = cli.COMMANDS[command].schema
        ConfigStore.instance().store(name=f"{command}_schema", node=schema)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = compose(command, overrides=shlex.split(line)[2:])
        GlobalHydra.instance().clear()
        for name, value in values.items():
            found = OmegaConf.select(composed, name)
            assert (OmegaConf.to_object(found) if isinstance(value, dict) else found) == value
        OmegaConf.to_object(composed)  # our checks of ranges and choices
        text = (tmp_path / "out" / f"{command}-from-mace.yaml").read_text()
        assert text == as_yaml(command, values)
        assert text in printed
    run_command(
        *(
            "train",
            "--config-dir",
            tmp_path / "out",
            "--config-name",
            "train-from-mace",
            "--cfg",
            "job",
        )
    )
    assert "distance_transform: Agnesi" in capsys.readouterr().out
    assert "no equal: --error_table=TotalMAE" in printed


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        (
            ["--interaction=RealAgnosticDensityResidualInteractionBlock"],
            "model.interaction",
            DENSITY_RESIDUAL,
        ),
        (
            ["--interaction_first=RealAgnosticDensityInteractionBlock"],
            "model.interaction_first",
            DENSITY,
        ),
        (
            ["--interaction_first=RealAgnosticResidualInteractionBlock"],
            "model.interaction_first",
            None,
        ),
        (
            ["--model=ScaleShiftMACE", "--interaction_first=RealAgnosticInteractionBlock"],
            "model.interaction_first",
            "RealAgnosticInteractionBlock",
        ),
        (
            ["--interaction=RealAgnosticResidualNonLinearInteractionBlock"],
            "model.interaction",
            NONLINEAR,
        ),
        (["--edge_irreps=64x0e + 64x1o"], "model.edge_irreps", "64x0e + 64x1o"),
        (
            ["--use_edge_irreps_first=True", "--edge_irreps=8x0e"],
            "model.use_edge_irreps_first",
            True,
        ),
        (["--use_agnostic_product=True"], "model.use_agnostic_product", True),
        (["--apply_cutoff=False"], "model.apply_cutoff", False),
        (["--use_last_readout_only=True"], "model.use_last_readout_only", True),
        (["--radial_type=gaussian"], "model.radial_type", "gaussian"),
        (["--gate=None"], "model.gate", "None"),
        (["--loss=ef", "--forces_weight=7"], "loss.forces_weight", 1.0),
        (["--loss=forces_only"], "loss.energy_weight", 0.0),
        (["--loss=stress", "--stress_weight=3"], "loss.stress_weight", 3.0),
        (["--stress_weight=3"], "loss.stress_weight", None),
        (["--optimizer=schedulefree"], "optimizer.beta2", 0.98),
        (["--lbfgs"], "optimizer.optimizer", "lbfgs"),
        (["--lbfgs"], "scheduler.scheduler", "constant"),
        (["--lbfgs", "--swa"], "stage_two.lr", 1.0),
        (["--eval_interval=2"], "scheduler.scheduler_patience", 24),
        (["--eval_interval=99"], "scheduler.scheduler_patience", 0),
        (["--eval_interval=1"], "scheduler.scheduler_patience", None),
        (["--freeze=6"], "optimizer.freeze", ["node_embedding", "interactions", "products"]),
        (["--start_stage_two", "10"], "stage_two.start", 10),
        (["--clip_grad=None"], "clip_grad", None),
        (["--max_L=2", "--num_channels=32"], "model.max_L", 2),
        (["--radial_MLP=[32, 16]"], "model.radial_MLP", [32, 16]),
        (["--wandb", "--wandb_project=p"], "logger.wandb_mode", "online"),
        (["--save_all_checkpoints"], "checkpoints.keep_every", 1),
        (["--pair_repulsion"], "model.pair_repulsion", True),
    ],
)
def test_values_that_need_care(words, setting, value):
    equal, without = translate(None, ["--name=a", "--train_file=a.xyz", *words])
    assert equal["train"].get(setting) == value
    assert without == []
    if setting == "clip_grad":
        assert setting in equal["train"]


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        (["--use_so3=True"], "--use_so3=True: other values are another architecture"),
        (["--use_edge_irreps_first=True"], "--use_edge_irreps_first=True: does nothing without"),
        (["--radial_type=chebyshev"], "--radial_type=chebyshev: one of bessel, gaussian"),
        (["--hidden_irreps=16x0e+8x1o"], "--hidden_irreps=16x0e+8x1o: degrees"),
        (["--model=PolarMACE"], "--model=PolarMACE"),
        (["--scheduler=StepLR"], "--scheduler=StepLR"),
        (["--loss=dipole"], "--loss=dipole"),
        (["--device=mps"], "--device=mps"),
        (["--num_samples_pt=500"], "--num_samples_pt=500: choose the structures"),
        (["--swa", "--loss=huber"], "--swa with --loss=huber: mace-torch's stage two has squared"),
        (["--swa", "--loss=l1l2energyforces"], "--swa with --loss=l1l2energyforces: mace-torch"),
        (["--swa", "--loss=forces_only"], "--swa with --loss=forces_only: mace_run_train refuses"),
        (["--swa", "--lr_params_factors={'readouts_lr_factor': 2}"], "--swa with --lr_params"),
        (["--ema", "--optimizer=schedulefree"], "--ema with schedulefree: mace-torch averages"),
        (["--ema", "--lbfgs"], "--ema with lbfgs: mace-torch averages"),
        (["--disallow_random_padding_pt"], "--allow_random_padding_pt=False"),
    ],
)
def test_what_has_no_equal_is_said(words, begin):
    _, without = translate(None, ["--name=a", "--train_file=a.xyz", *words])
    assert len(without) == 1
    assert without[0].startswith(begin)


def test_fine_tuning_imports_first():
    words = ["--name=a", "--train_file=a.xyz", "--foundation_model=big.model", "--E0s=estimated"]
    equal, without = translate(None, [*words, "--lora=True", "--lora_rank=8"])
    assert equal["import"] == {"model_file": "big.model", "output": "a/foundation"}
    assert list(equal) == ["import", "preprocess", "train"]
    assert equal["preprocess"]["data.E0s"] == "foundation"
    assert equal["preprocess"]["data.foundation_model"] == "a/foundation"
    train = equal["train"]
    assert train["foundation.checkpoint"] == "a/foundation"
    assert train["foundation.E0s"] == "estimated"
    assert train["foundation.lora_rank"] == 8
    assert "optimizer.lr" not in train
    assert [line.partition(":")[0] for line in without] == ["--r_max"]


def test_replay_is_a_head_with_what_mace_torch_changes_for_it():
    words = ["--name=a", "--train_file=a.xyz", "--foundation_model=big.model", "--lr=0.5"]
    words += ["--pt_train_file=old.xyz", "--weight_pt_head=0.3", "--E0s={1: -1.0, 8: -2.0}"]
    equal, _ = translate(None, words)
    data, train = equal["preprocess"], equal["train"]
    assert data["data.train_file"] == {"Default": "a.xyz", "pt_head": "old.xyz"}
    assert data["data.E0s"] == {"Default": {1: -1.0, 8: -2.0}, "pt_head": "foundation"}
    assert train["checkpoints.head"] == "Default"
    assert train["loss.head_weights"] == {"pt_head": 0.3}
    assert train["loss.loss"] == "universal"
    assert train["optimizer.lr"] == 1e-4
    assert train["ema_decay"] == 0.99999
    equal, _ = translate(None, [*words, "--force_mh_ft_lr=True"])
    assert equal["train"]["optimizer.lr"] == 0.5
    equal, without = translate(None, ["--name=a", "--train_file=a", "--foundation_model=small"])
    assert equal["import"]["model_file"] == "small"
    ratio = "--real_pt_data_ratio_threshold"
    assert [line.partition(":")[0] for line in without] == ["--pt_train_file", ratio, "--r_max"]
    (repeated,) = [line for line in without if line.startswith(ratio)]
    assert "fewer than 0.1 of those to replay; batching.head_sampling_ratios={Def" in repeated
    _, without = translate(None, [*words, f"{ratio}=0"])
    assert not [line for line in without if line.startswith(f"{ratio}:")]


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("medium_off", "medium_off", "Academic Software License .* add accept_licence=ASL to imp"),
        ("polar-1-m", "polar-1-m.model", "mace-torch downloads it; give its .model file"),
    ],
)
def test_names_of_foundation_models(name, file, words):
    equal, without = translate(None, ["--name=a", "--train_file=a", f"--foundation_model={name}"])
    assert equal["import"] == {"model_file": file, "output": "a/foundation"}
    assert re.search(f"^--foundation_model={name}: .*{words}", without[0])


def test_heads_become_mappings():
    heads = {
        "pbe": {"train_file": "a.xyz", "E0s": "average", "valid_file": "v.xyz"},
        "scan": {"train_file": "b.xyz", "E0s": "{1: -1.0}", "energy_key": "e"},
    }
    equal, without = translate(None, ["--name=a", f"--heads={heads}"])
    assert equal["preprocess"]["data.train_file"] == {"pbe": "a.xyz", "scan": "b.xyz"}
    assert equal["preprocess"]["data.valid_file"] == {"pbe": "v.xyz"}
    assert equal["train"]["checkpoints.head"] == "scan"  # as the loop of mace-torch
    assert equal["preprocess"]["data.E0s"] == {"pbe": "average", "scan": {1: -1.0}}
    assert without == ["--heads: energy_key of scan is a setting of all heads here"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lrr=1"], "unrecognized arguments: --lrr=1"),
        (["--lr=fast"], "--lr=fast: mace_run_train takes a number"),
        (["--radial_MLP=[1,"], "cannot be read as a list"),
        (["--batch_size=0"], "batching.batch_size"),
        (["--num_channels=x"], "--num_channels=x: mace_run_train takes a number without"),
        (["--freeze=a"], "--freeze=a: mace_run_train takes a number without"),
        (["--max_num_epochs=1e400"], "--max_num_epochs=1e400: mace_run_train takes a number"),
        (["--use_so3=maybe"], "--use_so3=maybe: give true or false"),
        (["--lr_params_factors=[1]"], "give a mapping, such as"),
        (["--lr_params_factors={'a': 'b'}"], "--lr_params_factors: 'b' is no number"),
        (["--heads={'a': 1}"], "--heads, a=1: give a mapping"),
        (["--radial_MLP=" + "[" * 9000], "cannot be read as a list"),
    ],
)
def test_messages(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        translate(None, ["--name=a", "--train_file=a.xyz", *words])


def test_file_that_is_none(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    for text, message in (
        ("lrr: 1", "no argument 'lrr' (did you mean lr?)"),
        ("[1]", "must map arguments"),
        ("a: [", "not YAML"),
        ("lr: [1]", "--lr=[1]: mace_run_train takes one value"),
        ("max_num_epochs: {a: 1}", "mace_run_train takes one value"),
        ("radial_MLP: {a: 1}", "give a list, such as [64, 64]"),
        ("name: \x00", "not YAML"),
        ("swa: maybe", "swa: maybe: a flag; give true or false"),
        ("lr: true", "--lr=True: mace_run_train takes a number"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit):
            run_command("from-mace-config", file)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("from-mace-config")
    assert "needs a YAML file, or arguments" in capsys.readouterr().err


def test_the_table_in_the_docs_is_this_one():
    text = (CONFIGS.parent / "mace_train" / "interop" / "README.md").read_text()
    assert table() in text


@pytest.mark.parametrize("given", ["[[]]", "[{a: 1}]", "5", "{a: 1}", "[null]", "true", "a"])
def test_arguments_that_are_no_words_are_refused(given, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("from-mace-config", f"arguments={given}")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "arguments: " in error
    assert "Traceback" not in error
