"""Checks of single settings, and what their messages say."""

import pytest

from mace_train.checks import (
    as_files,
    check_at_least,
    check_choice,
    check_cores,
    did_you_mean,
    files_by_head,
)
from mace_train.errors import InputError
from mace_train.settings.inputs import PER
from mace_train.settings.model import DENSITY, GATES, INTERACTION_BLOCKS, NONLINEAR


def test_a_choice_is_one_of_the_valid_ones():
    check_choice("loss.loss", "huber", ("weighted", "huber"))
    wrong = r"^loss='hubr' is not known \(did you mean huber\?\); .*choices are: weighted, huber$"
    with pytest.raises(InputError, match=wrong):
        check_choice("loss", "hubr", ("weighted", "huber"))
    with pytest.raises(InputError, match=r"^loss='x' is not known; valid choices are: a, b$"):
        check_choice("loss", "x", ("a", "b"))


@pytest.mark.parametrize(
    ("value", "choices", "near"),
    [
        ("node", PER, "atom"),
        ("Structure", PER, "graph"),
        ("realagnosticinteractionblock", INTERACTION_BLOCKS, "RealAgnosticInteractionBlock"),
        ("nonlinear", INTERACTION_BLOCKS, NONLINEAR),
        ("density", INTERACTION_BLOCKS, DENSITY),
        ("none", GATES, "None"),
        ("swish", GATES, "silu"),
        ("fp32", ("float32", "float64"), "float32"),
        ("float", ("categorical", "continuous"), "continuous"),
        ("mp-0b3", ("mp_0b2_large", "mp_0b3"), "mp_0b3"),
        ("", ("a", "b"), None),
        ("zz", ("a", "b"), None),
    ],
)
def test_the_choice_that_is_meant(value, choices, near):
    hint = "" if near is None else f" (did you mean {near}?)"
    assert did_you_mean(value, choices) == hint


def test_a_least_value():
    check_at_least("patience", None, 1)
    check_at_least("patience", 1, 1)
    check_at_least("lr", 1e-9, 0, strictly=True)
    with pytest.raises(InputError, match=r"^patience=0 is out of range; it must be at least 1$"):
        check_at_least("patience", 0, 1)
    with pytest.raises(InputError, match=r"^lr=0 is out of range; it must be greater than 0$"):
        check_at_least("lr", 0, 0, strictly=True)
    with pytest.raises(InputError, match="lr=nan is out of range"):
        check_at_least("lr", float("nan"), 0)


def test_files_of_a_setting():
    assert as_files("train_file", None) == []
    assert as_files("train_file", "a.xyz") == ["a.xyz"]
    assert as_files("train_file", ["a.xyz", "b.xyz"]) == ["a.xyz", "b.xyz"]
    for value in (3, ["a.xyz", 3], {"emt": "a.xyz"}):
        with pytest.raises(InputError, match=r"^train_file=.* must be a path or a list of paths"):
            as_files("train_file", value)


def test_files_by_head():
    assert files_by_head("train_file", "a.xyz") == {"Default": ["a.xyz"]}
    assert files_by_head("train_file", None) == {"Default": []}
    value = {"emt": "a.xyz", 2: ["b.xyz", "c.xyz"]}
    assert files_by_head("train_file", value) == {"emt": ["a.xyz"], "2": ["b.xyz", "c.xyz"]}
    with pytest.raises(InputError, match=r"^train_file\.emt=3 must be a path"):
        files_by_head("train_file", {"emt": 3})


def test_threads_and_processes_for_the_cores_of_this_host(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    check_cores("workers", None)
    check_cores("workers", 128)
    with pytest.raises(InputError, match=r"^workers=129 .* at most 128 here .this host has 8"):
        check_cores("workers", 129)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    check_cores("workers", 64)
