"""The campaign of measurements on a GPU: what is done stays done, and nothing is lost quietly."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.modules import module_of

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module", autouse=True)
def scripts_import_each_other():
    own = [str(BENCH / "gpu"), str(BENCH)]
    sys.path[:0] = own
    yield
    for folder in own:
        sys.path.remove(folder)


@pytest.fixture
def campaign(tmp_path):
    module = module_of(BENCH / "gpu" / "campaign.py")
    module.folder = tmp_path / "out"
    return module


def row(name: str, ratio: float | None, at_least: float = 1.0) -> dict[str, object]:
    return {"name": name, "ours": 1.0, "peer": ratio, "ratio": ratio, "at_least": at_least}


def writing(found: object, code: int = 0) -> tuple[str, ...]:
    """A command that writes what a benchmark would, and counts its runs beside it."""
    program = (
        "import pathlib, sys; out = pathlib.Path(sys.argv[1]);"
        "out.with_suffix('.runs').open('a').write('x');"
        f"out.write_text({json.dumps(found)!r}); print('the log'); sys.exit({code})"
    )
    return sys.executable, "-c", program, "{json}"


def runs_of(module, name: str) -> int:
    path = module.folder / f"{name}.runs"
    return len(path.read_text()) if path.exists() else 0


def with_measurements(module, monkeypatch, *measurements) -> None:
    monkeypatch.setattr(module, "measurements", lambda: list(measurements))


def main(module, *words: str) -> int:
    return module.main(["--folder", str(module.folder), *words])


def record(module, name: str) -> dict[str, object]:
    return json.loads((module.folder / f"{name}.json").read_text())


def test_a_later_run_takes_only_what_is_left(campaign, monkeypatch, capsys):
    one = campaign.Measurement("one", writing([row("first", 2.0)]), 1)
    two = campaign.Measurement("two", writing({"rows": [row("second", 3.0)]}), 100)
    with_measurements(campaign, monkeypatch, one, two)
    assert main(campaign, "--minutes", "0.5") == os.EX_TEMPFAIL
    assert (runs_of(campaign, "one"), runs_of(campaign, "two")) == (1, 0)
    assert "left: two" in capsys.readouterr().out
    assert main(campaign) == 0
    assert (runs_of(campaign, "one"), runs_of(campaign, "two")) == (1, 1)
    assert main(campaign, "--only", "one") == 0
    assert (runs_of(campaign, "one"), runs_of(campaign, "two")) == (2, 1)
    assert record(campaign, "two")["rows"] == [row("second", 3.0)]
    assert (campaign.folder / "one.log").read_text() == "the log\n"


def test_a_failure_is_recorded_and_the_next_goes_on(campaign, monkeypatch, capsys):
    bad = campaign.Measurement(
        "bad", (sys.executable, "-c", "print('why'); raise OSError('gone')"), 1
    )
    half = campaign.Measurement("half", writing({"rows": [row("a", 2.0)], "complete": False}, 1), 1)
    quiet = campaign.Measurement("quiet", (sys.executable, "-c", ""), 1)
    check = campaign.Measurement(
        "check", (sys.executable, "-c", "raise SystemExit(1)"), 1, rows=False
    )
    good = campaign.Measurement("good", writing([row("b", 2.0)]), 1)
    with_measurements(campaign, monkeypatch, bad, half, quiet, check, good)
    assert main(campaign) == 1
    assert [record(campaign, name)["status"] for name in ("bad", "half", "quiet", "check")] == [
        "failed"
    ] * 4
    assert record(campaign, "bad")["tail"][0] == "why"
    assert record(campaign, "bad")["tail"][-1] == "OSError: gone"
    assert record(campaign, "good")["status"] == "done"
    assert "! bad: failed, exit 1" in capsys.readouterr().out
    section = (campaign.folder / "campaign.md").read_text()
    assert "OSError: gone" in section
    assert "| b | 1 | 2 | 2 | 1 |" in section
    assert main(campaign) == 1
    assert runs_of(campaign, "half") == 1
    main(campaign, "--retry")
    assert (runs_of(campaign, "half"), runs_of(campaign, "good")) == (2, 1)


def test_a_row_that_falls_short_is_exit_code_1(campaign, monkeypatch, capsys):
    short = [row("slow", 0.9), row("without peer", None), row("fast", 1.0)]
    limit = {"name": "late", "ours": 2.0, "at_most": 1.0}
    with_measurements(
        campaign, monkeypatch, campaign.Measurement("one", writing([*short, limit], 1), 1)
    )
    assert main(campaign) == 1
    assert record(campaign, "one")["status"] == "done"
    marks = {line[2:].split(" | ")[0]: line[0] for line in capsys.readouterr().out.splitlines()}
    expected = {"slow": "!", "without peer": "!", "fast": " ", "late": "!"}
    assert {name: marks[name] for name in expected} == expected
    section = (campaign.folder / "campaign.md").read_text()
    assert "**0.9**" in section
    assert "**not measured**" in section


def test_a_measurement_that_takes_too_long_is_stopped_with_what_it_started(campaign, monkeypatch):
    mark = campaign.folder / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    program = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); print('started', flush=True);"
        "time.sleep(60)"
    )
    slow = campaign.Measurement("slow", (sys.executable, "-c", program), 1, limit_s=1)
    with_measurements(campaign, monkeypatch, slow)
    assert main(campaign) == 1
    found = record(campaign, "slow")
    assert found["status"] == "stopped at its limit of 1 s"
    assert found["tail"] == ["started"]
    # the same, when the time of the whole ends first: not a failure, but left for another run
    (campaign.folder / "slow.json").unlink()
    with_measurements(campaign, monkeypatch, replace(slow, limit_s=500))
    start = time.monotonic()
    assert main(campaign, "--minutes", str((campaign.RESERVE_S + 1.5) / 60)) == os.EX_TEMPFAIL
    assert time.monotonic() - start < 10
    assert not (campaign.folder / "slow.json").exists()
    time.sleep(max(0.0, start + 3.5 - time.monotonic()))
    assert not mark.exists()


def test_packed_results_continue_elsewhere(campaign, monkeypatch, tmp_path):
    one = campaign.Measurement("one", writing([row("first", 2.0)]), 1)
    two = campaign.Measurement("two", writing([row("second", 2.0)]), 100)
    with_measurements(campaign, monkeypatch, one, two)
    pack = str(tmp_path / "results.tar.gz")
    assert main(campaign, "--minutes", "0.5", "--pack", pack) == os.EX_TEMPFAIL
    campaign.folder = tmp_path / "another machine"
    assert main(campaign, "--pack", pack) == 0
    assert record(campaign, "one")["rows"] == [row("first", 2.0)]
    assert runs_of(campaign, "two") == 1


def test_a_rehearsal_asks_for_no_goals_and_is_kept_apart(campaign, monkeypatch):
    measurement = campaign.Measurement("one", ("false",), 1, writing([row("slow", 0.1)], 1))
    on_gpu = campaign.Measurement("two", ("false",), 1)
    with_measurements(campaign, monkeypatch, measurement, on_gpu)
    assert main(campaign, "--rehearse") == 0
    with pytest.raises(SystemExit, match="one is from a rehearsal; give another --folder"):
        main(campaign)
    with pytest.raises(SystemExit, match="no such measurement; there are one, two"):
        main(campaign, "--only", "three")


def test_openequivariance_is_used_once_it_has_been_built(campaign, monkeypatch, tmp_path):
    show = (sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'])")
    build = campaign.Measurement(
        "openequivariance", show, 1, rows=False, with_openequivariance=True
    )
    user = campaign.Measurement("user", show, 1, rows=False, with_openequivariance=True)
    with_measurements(campaign, monkeypatch, user, build)
    folder = tmp_path / "oeq"
    assert main(campaign) == os.EX_TEMPFAIL  # its folder is not given
    assert main(campaign, "--openequivariance", str(folder)) == 0
    assert str(folder) not in record(campaign, "user")["tail"][0]
    assert main(campaign, "--openequivariance", str(folder), "--only", "user") == 0
    assert record(campaign, "user")["tail"][0].split(os.pathsep)[-1] == str(folder)


def test_measurements_fit_into_the_calls_that_there_are(campaign):
    measurements = campaign.measurements()
    assert len({measurement.name for measurement in measurements}) == len(measurements)
    for measurement in measurements:
        assert measurement.estimate_s < measurement.limit_s < 9 * 60
        for word in (*measurement.command, *(measurement.rehearsal or ())):
            assert not word.endswith(".py") or Path(word).is_file()


@pytest.mark.filterwarnings("ignore")  # of the peers that they compare with
def test_a_measurement_is_rehearsed(campaign, capsys):
    assert main(campaign, "--rehearse", "--only", "facts") in (0, os.EX_TEMPFAIL)
    found = record(campaign, "facts")
    assert found["found"]["facts"]["PyTorch"]
    assert found["rows"][0]["ours"] < found["rows"][0]["peer"]
    assert "measured on no GPU" in (campaign.folder / "campaign.md").read_text()
