"""Checks of single settings, and what their messages say."""

import pytest

from mace_train.checks import as_files, check_at_least, check_choice, check_cores, files_by_head
from mace_train.errors import InputError


def test_a_choice_is_one_of_the_valid_ones():
    check_choice("loss.loss", "huber", ("weighted", "huber"))
    with pytest.raises(InputError, match=r"^loss\.loss='hubr' .*choices are: weighted, huber$"):
        check_choice("loss.loss", "hubr", ("weighted", "huber"))


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
