"""The bounds on skipped tests: an unknown reason, or too many of a known one, fail a run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import LIMITS

ROOT = Path(__file__).parents[1]

CONFTEST = r"""
from tests.skips import Limit, SkipLimits

LIMITS = [
    Limit("no device", r"no device \d$", 3),
    Limit("no cluster", r"no cluster", 2, "REQUIRE_CLUSTER"),
]

def pytest_configure(config):
    config.pluginmanager.register(SkipLimits(LIMITS), "skip-limits")
"""

KNOWN = r"""
import pytest

@pytest.mark.parametrize("i", range(3))
def test_device(i):
    pytest.skip(f"no device {i}")

@pytest.mark.skipif(True, reason="no cluster\n here")
def test_cluster():
    pass

@pytest.mark.xfail(reason="no skip")
def test_expected_failure():
    assert False

def test_passes():
    pass
"""

MODULE = """
import pytest
pytest.skip("{reason}", allow_module_level=True)
"""


QUICK = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
RUNS = pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])


def run_pytest(folder: Path, files: dict[str, str], *options: str, **environment: str):
    """Exit code and output of pytest on files in a folder of their own."""
    for name, text in {"conftest.py": CONFTEST, "pytest.ini": "[pytest]", **files}.items():
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", **QUICK, **environment},
    )
    return done.returncode, done.stdout


@RUNS
def test_skips_are_counted_and_a_known_reason_may_skip(options, tmp_path):
    files = {"test_a.py": KNOWN, "test_b.py": MODULE.format(reason="no cluster either")}
    code, shown = run_pytest(tmp_path, files, *options)
    assert code == 0, shown
    assert "    3 (at most 3): no device" in shown
    assert "    2 (at most 2): no cluster" in shown
    assert "ERROR" not in shown


@RUNS
@pytest.mark.parametrize(
    "file",
    [
        MODULE.format(reason="too lazy"),
        "import pytest\n\ndef test_it():\n    pytest.skip('too lazy')\n",
    ],
    ids=["module", "call"],
)
def test_an_unknown_reason_fails_the_run(file, options, tmp_path):
    code, shown = run_pytest(tmp_path, {"test_a.py": KNOWN, "test_b.py": file}, *options)
    assert code == 1, shown
    assert "    1 (at most 0): too lazy" in shown
    assert "ERROR: 1 skipped, at most 0 allowed: too lazy; " in shown
    assert "at most 3 allowed" not in shown


def test_too_many_skips_fail_the_run(tmp_path):
    code, shown = run_pytest(tmp_path, {"test_a.py": KNOWN.replace("range(3)", "range(4)")})
    assert code == 1, shown
    assert "ERROR: 4 skipped, at most 3 allowed: no device; " in shown


def test_what_is_required_may_not_be_skipped(tmp_path):
    code, shown = run_pytest(tmp_path, {"test_a.py": KNOWN}, REQUIRE_CLUSTER="1")
    assert code == 1, shown
    assert "ERROR: 1 skipped, at most 0 allowed: no cluster; " in shown


def test_a_part_of_the_tests_and_one_without_skips_pass(tmp_path):
    code, shown = run_pytest(tmp_path, {"test_a.py": KNOWN}, "-k", "passes")
    assert code == 0, shown
    assert "by reason" not in shown


def test_a_failure_stays_a_failure(tmp_path):
    failing = "def test_it():\n    assert 1 == 2\n"
    code, shown = run_pytest(tmp_path, {"test_a.py": KNOWN, "test_b.py": failing})
    assert code == 1
    assert "1 failed" in shown


def test_every_reason_in_the_tests_has_one_limit():
    written = re.compile(r'(?:reason=|pytest\.skip\()\s*f?"([^"]+)"')
    imported = re.compile(r'importorskip\(\s*"([\w.]+)"\)')  # without a reason of its own
    reasons = set()
    for path in set(ROOT.glob("tests/**/*.py")) - {Path(__file__), ROOT / "tests" / "skips.py"}:
        text = path.read_text()
        if "skip" in text:
            reasons |= set(written.findall(text))
            reasons |= {f"could not import {name!r}: No module" for name in imported.findall(text)}
    assert len(reasons) > 20
    for reason in reasons:
        text = re.sub(r"\{(error\.name|needs)\}", "package", reason)
        found = [limit.name for limit in LIMITS if re.search(limit.pattern, text)]
        assert len(found) == 1, (reason, found)


def test_slurm_may_not_be_skipped_where_it_is_required(monkeypatch):
    (slurm,) = (limit for limit in LIMITS if limit.name == "no Slurm")
    monkeypatch.delenv("MACE_TRAIN_REQUIRE_SLURM", raising=False)
    assert slurm.allowed > 0
    monkeypatch.setenv("MACE_TRAIN_REQUIRE_SLURM", "1")
    assert slurm.allowed == 0
