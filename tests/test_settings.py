"""The schema: configs/ holds nothing it does not know, and ranges and choices are checked."""

import dataclasses
import math
import re
from typing import Any

import pytest
import yaml

from mace_train import cli, settings
from mace_train._paths import CONFIGS
from mace_train.cli_help import command_help, valid_names
from mace_train.errors import InputError
from mace_train.settings.ranges import Range, bounded, check_ranges, range_of

SCHEMAS = {command: row.schema for command, row in cli.COMMANDS.items()}
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
            content.pop("defaults", None)  # another choice of the group, with differences
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
        (lambda: settings.ModelSettings(radial_MLP=[]), "1 to 100"),
        (lambda: settings.ModelSettings(radial_MLP=[8, 0]), r"radial_MLP\[1\]=0 .* at least 1"),
        (lambda: settings.ModelSettings(max_L=3, max_ell=2), "at least 3"),
        (lambda: settings.ModelSettings(interaction="Mine"), "RealAgnosticResidualNonLinear"),
        (lambda: settings.ModelSettings(edge_irreps="8x1e"), "same multiplicity each"),
        (lambda: settings.ModelSettings(edge_irreps="8x0e+8x1o+8x2e"), "up to max_L=1"),
        (lambda: settings.ModelSettings(use_edge_irreps_first=True), "give model.edge_irreps"),
        (lambda: settings.ModelSettings(radial_type="chebyshev"), "bessel, gaussian"),
        (
            lambda: settings.ModelSettings(radial_type="gaussian", num_radial_basis=1),
            "takes at least 2",
        ),
        (lambda: settings.ModelSettings(gate="relu"), "silu, tanh, abs, None"),
        (
            lambda: settings.ModelSettings(use_last_readout_only=True, num_interactions=1),
            "num_interactions to 2",
        ),
        (lambda: settings.ModelSettings(correlation="3"), "must be a number without fraction"),
        (lambda: settings.ModelSettings(correlation=2.5), "must be a number without fraction"),
        (lambda: settings.ModelSettings(correlation=[3]), "one for each of the 2 layers"),
        (lambda: settings.ModelSettings(correlation=[3, 11]), r"correlation\[1\]=11 is out of"),
        (lambda: settings.OptimizerSettings(optimizer="sgd"), "adam, adamw"),
        (lambda: settings.OptimizerSettings(beta=1.0), "at least 0 and less than 1"),
        (lambda: settings.SchedulerSettings(scheduler="step"), "plateau"),
        (lambda: settings.LossSettings(energy_weight=0, forces_weight=0), "nothing to train on"),
        (lambda: settings.LossSettings(config_type_weights={"bulk": -1.0}), "bulk"),
        (lambda: settings.BatchingSettings(packer="greedy"), "fixed_count"),
        (lambda: settings.BatchingSettings(max_atoms=0), "at least 1"),
        (lambda: settings.LoggerSettings(wandb_mode="on"), "offline"),
        (lambda: settings.ClusterSettings(device="gpu"), "cuda"),
        (lambda: settings.TrainSettings(default_dtype="half"), "float64"),
        (lambda: settings.TrainSettings(max_num_epochs=0), "at least 1"),
        (lambda: settings.TrainSettings(ema_decay=1.0), "at least 0 and less than 1"),
        (lambda: settings.PreprocessSettings(r_max=0.0), "greater than 0"),
        (lambda: settings.DataSettings(valid_fraction=1.0), "at least 0 and less than 1"),
        (lambda: settings.DataSettings(train_file=3), "path or a list of paths"),
        (lambda: settings.DataSettings(E0s=3), "average"),
        (lambda: settings.EvaluateSettings(split="all"), "train, valid, test"),
        (lambda: settings.BalanceSettings(gpus=0), "at least 1"),
    ],
)
def test_values_out_of_range_are_errors(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"edge_irreps": "128x0e + 128x1o"}, {}),
        ({"edge_irreps": "128x0e+128x1o", "use_edge_irreps_first": True}, {}),
        ({"edge_irreps": "8x0e + 8x1o"}, {"edge_irreps": "8x0e+8x1o"}),
        ({"correlation": [2, 2]}, {"correlation": 2}),
    ],
)
def test_equal_models_have_equal_settings(given, same):
    assert settings.ModelSettings(**given) == settings.ModelSettings(**same)


def _classes() -> list[type]:
    """Every class of settings, of commands and of groups."""
    return list({*SCHEMAS.values(), *GROUPS.values()})


def _numbers(schema: type) -> list["dataclasses.Field"]:
    """The fields whose type holds an int or a float."""
    return [
        field
        for field in dataclasses.fields(schema)
        if re.search(r"\b(int|float)\b", str(field.type)) and field.type != "bool"
    ]


def test_every_number_has_a_declared_range_with_a_reason():
    found = [(schema, field) for schema in _classes() for field in _numbers(schema)]
    assert len(found) >= 80
    for schema, field in found:
        limits = range_of(field)
        assert limits is not None, f"{schema.__name__}.{field.name}: declare it with bounded()"
        assert limits.reason, f"{schema.__name__}.{field.name}"
        assert math.isfinite(limits.minimum)
        assert math.isfinite(limits.maximum)
        if isinstance(field.default, (int, float)):
            assert limits.holds(field.default), f"{schema.__name__}.{field.name}"


def test_every_range_is_in_the_help_page():
    for command, schema in SCHEMAS.items():
        page = " ".join(command_help(command, schema, CONFIGS).split())
        for owner in (schema, *(f.type for f in dataclasses.fields(schema))):
            for field in dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ():
                limits = range_of(field)
                assert limits is None or f"Range: {limits}." in page, f"{command}: {field.name}"


def _wrong_values(limits: Range) -> list[float]:
    beyond = [math.nan, math.inf, -math.inf]
    beyond += [limits.minimum] if limits.exclude_minimum else [limits.minimum - 1]
    beyond += [limits.maximum] if limits.exclude_maximum else [limits.maximum * 2]
    return beyond


def test_every_constructor_checks_its_ranges():
    n_checked = 0
    for schema in _classes():
        for field in dataclasses.fields(schema):
            limits = range_of(field)
            for value in [] if limits is None else _wrong_values(limits):
                kinds = {list: [value, 1, 1], dict: {"a": value}}
                kind = list if "list" in str(field.type) else dict if field.type is Any else None
                given = value if kind is None else kinds[kind]
                with pytest.raises(InputError, match=rf"{field.name}\b.* must be .*{'at|than'}"):
                    schema(**{field.name: given})
                n_checked += 1
    assert n_checked > 400


def test_numbers_at_the_limits_are_accepted():
    for schema in _classes():
        for field in _numbers(schema):
            limits = range_of(field)
            if "list" in str(field.type) or schema is settings.FoundationSettings:
                continue
            if field.name in ("pressure_GPa", "max_memory_gb"):  # need another setting
                continue
            low = limits.minimum if not limits.exclude_minimum else 1e-9
            high = limits.maximum if not limits.exclude_maximum else 0.999
            for value in (low, high):
                base = {"max_ell": 11} if field.name == "max_L" else {}
                if field.name == "max_ell":
                    base = {"max_L": 0 if value < 1 else 1}
                if schema is settings.FromMaceConfigSettings:
                    continue
                assert getattr(schema(**base, **{field.name: value}), field.name) == value


@dataclasses.dataclass
class _Example:
    """Settings of every kind that a range may be declared for."""

    rate: float = bounded(0.5, Range(0, 1, exclude_minimum=True, reason="a share"))
    steps: int | None = bounded(None, Range(1, 10**9, reason="why"))
    widths: list[int] = bounded([8, 8], Range(1, 64, reason="why"))
    weights: Any = bounded(None, Range(0, 1e9, reason="why"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rate": 0.0},
            "x.rate=0 is out of range; it must be greater than 0 and at most 1 .a share",
        ),
        ({"rate": math.nan}, "x.rate=nan is out of range"),
        ({"steps": 10**9 + 1}, "x.steps=1,000,000,001 .* at most 1,000,000,000 .why"),
        ({"steps": 10**5000}, "x.steps=about 1e5000 is out of range"),
        ({"steps": True}, "x.steps=True is not a number"),
        ({"widths": [8, 65]}, r"x.widths\[1\]=65 is out of range"),
        ({"weights": {"bulk": -1}}, "x.weights.bulk=-1 is out of range"),
        ({"weights": {"a": {"b": math.inf}}}, "x.weights.a.b=inf is out of range"),
    ],
)
def test_a_number_out_of_its_range(values, message):
    check_ranges(_Example(), "x.")
    assert _Example().widths is not _Example().widths
    with pytest.raises(InputError, match=message):
        check_ranges(_Example(**values), "x.")


def test_a_growing_learning_rate_must_stay_finite():
    growing = settings.SchedulerSettings(scheduler="exponential", lr_scheduler_gamma=1.5)
    settings.TrainSettings(scheduler=growing, max_num_epochs=20)
    with pytest.raises(InputError, match=r"lr_scheduler_gamma=1.5: in max_num_epochs=2000 .*1e352"):
        settings.TrainSettings(scheduler=growing, max_num_epochs=2000)
