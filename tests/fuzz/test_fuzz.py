"""A short draw of ``scripts/fuzz.py``: no mutated input ends in anything but one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.cli import COMMANDS
from tests.fuzz.campaign import KINDS
from tests.fuzz.case import Case
from tests.fuzz.fixtures import Fixtures
from tests.fuzz.judge import judge
from tests.fuzz.process import Result
from tests.fuzz.settings_cases import all_settings, at_limits, numeric

ROOT = Path(__file__).parents[2]
N_INPUTS = 60


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_short_draw(tmp_path):
    found = tmp_path / "fuzz.json"
    words = ["--inputs", N_INPUTS, "--processes", "0.02", "--seed", "17", "--json", found]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "fuzz.py"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    record = json.loads(found.read_text())
    failures = [(f["number"], f["what"], f["outcome"], f["says"]) for f in record["failures"]]
    assert not failures
    assert done.returncode == 0, done.stderr[-2000:]
    counts = {(row["kind"], row["outcome"]): row["count"] for row in record["counts"]}
    assert sum(counts.values()) == N_INPUTS
    assert sum(n for (_, outcome), n in counts.items() if outcome == "refused") > N_INPUTS // 4
    assert sum(n for (_, outcome), n in counts.items() if outcome == "accepted") > N_INPUTS // 20


def test_every_setting_of_every_command_is_drawn_from():
    assert {setting.command for setting in all_settings()} == set(COMMANDS)
    assert set(Fixtures(Path()).base) == set(COMMANDS)
    assert len(all_settings()) > 200
    assert sum(share for share, _ in KINDS.values()) == 100


def test_values_at_the_limits_of_a_declared_range():
    limited = [s for s in all_settings() if s.range is not None and numeric(s)]
    assert len(limited) > 100  # the others are mappings and lists of numbers
    for setting in limited:
        values = at_limits(setting.range, is_whole="int" in str(setting.type))
        inside = [setting.range.holds(float(value)) for value in values]
        assert any(inside), setting.name
        assert not all(inside), setting.name


MESSAGE = "mace-train: error: seed=x is no number; give one\n"
CASES = [
    ("refused", Result(2, "", MESSAGE, 1.0), {}, []),
    ("accepted", Result(0, "done", "", 1.0), {}, []),
    ("TRACEBACK", Result(1, "", "Traceback (most recent call last):\nE: a\n", 1.0), {}, []),
    ("CODE", Result(1, "", "bad\n", 1.0), {}, []),
    ("SIGNAL", Result(-11, "", "", 1.0), {}, []),
    ("HANG", Result(130, "", "interrupted\n", 20.0, "interrupted"), {}, []),
    (
        "ran until it was interrupted",
        Result(130, "", "interrupted\n", 20.0, "interrupted"),
        {"runs_long": True},
        [],
    ),
    ("HANG", Result(-9, "", "", 20.0, "hang"), {"runs_long": True}, []),
    ("ACCEPTED", Result(0, "", "", 1.0), {"out_of_range": "seed=-1"}, []),
    ("NOT ONE MESSAGE", Result(2, "", "usage: a\n", 1.0), {}, []),
    ("NOT ONE MESSAGE", Result(2, "", MESSAGE * 2, 1.0), {}, []),
    ("NO REMEDY", Result(2, "", "mace-train: error: bad\n", 1.0), {}, []),
    ("LONG MESSAGE", Result(2, "", MESSAGE + "\nsee\n" * 9, 1.0), {}, []),
    ("LITTER", Result(2, "", MESSAGE, 1.0), {}, ["out/.settings.json.tmp"]),
    ("refused", Result(2, "", MESSAGE, 1.0), {}, [".out.partial/blocks"]),
]


@pytest.mark.parametrize(("outcome", "result", "of_case", "litter"), CASES)
def test_judgement(outcome, result, of_case, litter):
    verdict = judge(Case("a case", ["train"], **of_case), result, litter)
    assert verdict.outcome == outcome
    assert verdict.failed == outcome.isupper()


PROGRAM = """
import sys, time
from pathlib import Path
from tests.fuzz.process import fork
import mace_train.cli
mace_train.cli.main = eval(sys.argv[2])
running = fork([], {}, Path(sys.argv[1]), 1.0)
while (result := running.poll()) is None:
    time.sleep(0.02)
print(result.code, result.fate, repr(result.out), repr(result.err[-60:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("main", "shown"),
    [
        ("lambda: print('hello')", "0  'hello\\n'"),
        ("lambda: sys.exit(2)", "2  "),
        ("lambda: 1 / 0", "ZeroDivisionError"),
        ("lambda: __import__('os').kill(__import__('os').getpid(), 11)", "-11 "),
        ("lambda: time.sleep(1000)", "130 interrupted"),
    ],
)
def test_how_a_fork_ends(main, shown, tmp_path):
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), main],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert shown in done.stdout
