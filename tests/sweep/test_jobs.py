"""The jobs of a sweep are Hydra's, in Hydra's order."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from mace_train.errors import InputError
from mace_train.sweep.jobs import combinations, parsed, quoted_list, single_job, words_behind

WORDS = [
    "data_dir=prepared",
    "model=tiny,small",
    "optimizer.lr=choice(0.01,0.02)",
    "seed=range(1,3)",
    "loss.config_type_weights={a: 1, b: 2}",
]


def test_combinations_are_those_of_hydra():
    jobs = combinations(WORDS)
    (expected,) = BasicSweeper.split_arguments(parsed(WORDS), None)
    assert jobs == expected
    assert len(jobs) == 8
    assert len({tuple(job) for job in jobs}) == 8


def test_a_single_job_is_that_of_the_sweep():
    for number, job in enumerate(combinations(WORDS)):
        words = ["--multirun", "--job", str(number), "output=runs/x", *WORDS]
        assert single_job(words, "unused") == [*job, f"output='runs/x/{number}'"]
    words = ["--config-dir", "my", *WORDS, "--job", "0"]
    assert single_job(words, "runs/mace")[:2] == ["--config-dir", "my"]
    assert single_job(words, "runs/mace")[-1] == "output='runs/mace/0'"


@pytest.mark.parametrize("number", ["8", "-1", "x", ""])
def test_a_job_that_is_not_there_is_an_error(number):
    with pytest.raises(InputError, match=r"8 jobs, 0 to 7; submit it with sbatch --array=0-7"):
        single_job([*WORDS, "--job", number], "out")


def test_a_range_is_for_tune():
    with pytest.raises(InputError, match="mace-train tune"):
        combinations(["optimizer.lr=interval(0.1,1)"])


def test_words_survive_quoting():
    words = ["a='x y'", "b=[1,2]", "c={d: 'e'}"]
    (override,) = parsed([f"training={quoted_list(words)}"])
    assert [str(value) for value in override.value()] == words
    training = f"training={quoted_list(words)}"
    assert words_behind(["trials=3", "--", *words], "training") == ["trials=3", training]
    assert words_behind(["trials=3"], "training") == ["trials=3"]
