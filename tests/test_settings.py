"""The schema: configs/ holds nothing it does not know, and ranges and choices are checked."""

import dataclasses

import pytest
import yaml

from mace_train import cli, settings
from mace_train._paths import CONFIGS
from mace_train.cli_help import command_help, valid_names
from mace_train.errors import InputError

GROUPS = {
    field.name: field.type
    for command in cli.COMMANDS.values()
    for field in dataclasses.fields(command.schema)
    if dataclasses.is_dataclass(field.type)
}


def test_every_group_has_files_that_the_schema_knows():
    for name, schema in GROUPS.items():
        files = sorted((CONFIGS / name).glob("*.yaml"))
        assert files, f"config group {name} has no files"
        known = {field.name for field in dataclasses.fields(schema)}
        for path in files:
            content = yaml.safe_load(path.read_text()) or {}
            assert set(content) <= known, path


def test_every_field_has_a_help_text():
    for command, row in cli.COMMANDS.items():
        lines = command_help(command, row.schema, CONFIGS).splitlines()
        for name in valid_names(row.schema):
            index = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}: "))
            assert lines[index + 1].startswith("      "), f"{command}: {name} has no help text"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: settings.ModelSettings(model="mace"), "ScaleShiftMACE"),
        (lambda: settings.ModelSettings(MLP_irreps="16x1o"), "16x0e"),
        (lambda: settings.ModelSettings(num_channels=0), "at least 1"),
        (lambda: settings.ModelSettings(radial_MLP=[]), "positive widths"),
        (lambda: settings.ModelSettings(max_L=3, max_ell=2), "at least 3"),
        (lambda: settings.OptimizerSettings(optimizer="sgd"), "adam, adamw"),
        (lambda: settings.OptimizerSettings(beta=1.0), r"\[0, 1\)"),
        (lambda: settings.SchedulerSettings(scheduler="step"), "plateau"),
        (lambda: settings.LossSettings(energy_weight=0, forces_weight=0), "nothing to train on"),
        (lambda: settings.LossSettings(config_type_weights={"bulk": -1.0}), "bulk"),
        (lambda: settings.BatchingSettings(packer="greedy"), "fixed_count"),
        (lambda: settings.BatchingSettings(max_atoms=0), "at least 1"),
        (lambda: settings.LoggerSettings(wandb_mode="on"), "offline"),
        (lambda: settings.ClusterSettings(device="gpu"), "cuda"),
        (lambda: settings.TrainSettings(default_dtype="half"), "float64"),
        (lambda: settings.TrainSettings(max_num_epochs=0), "at least 1"),
        (lambda: settings.TrainSettings(ema_decay=1.0), r"\[0, 1\)"),
        (lambda: settings.PreprocessSettings(r_max=0.0), "greater than 0"),
        (lambda: settings.DataSettings(valid_fraction=1.0), r"\[0, 1\)"),
        (lambda: settings.DataSettings(train_file=3), "path or a list of paths"),
        (lambda: settings.DataSettings(E0s=3), "average"),
        (lambda: settings.EvaluateSettings(split="all"), "train, valid, test"),
        (lambda: settings.BalanceSettings(gpus=0), "at least 1"),
    ],
)
def test_values_out_of_range_are_errors(make, words):
    with pytest.raises(InputError, match=words):
        make()
