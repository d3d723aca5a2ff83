"""Randomly damaged shards and files: refused with a message, or read as they were.

2,000 cases take minutes: ``python scripts/bench/fuzz.py``.
"""

import multiprocessing

import pytest

from tests.data.fuzzing import run_guarded


def faults(first: int, last: int) -> set[str]:
    """Outcomes that should not be, found in a process without threads."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        counts = pool.apply(run_guarded, (first, last, 7))
    assert sum(counts.values()) == last - first
    outcomes = {outcome for _, outcome in counts}
    assert {"refused", "same"} <= outcomes
    return outcomes - {"refused", "same"}


def test_100_damaged_files():
    assert not faults(0, 100)


@pytest.mark.slow
def test_200_more_damaged_files():
    assert not faults(100, 300)
