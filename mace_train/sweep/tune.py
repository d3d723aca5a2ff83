"""``mace-train tune``: a search by Optuna (ask and tell) with trainings as trials.

Every trial is a training of its own in OUTPUT/K, started as a process, so a crash costs one trial.
The state of the search is OUTPUT/search.journal on a file system that all nodes share: several of
these commands take part in one search, and a search that was interrupted continues. A trial whose
command was killed is continued by the next one that starts, from its last checkpoint.
"""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from mace_train import interrupts
from mace_train.checks import as_files
from mace_train.child_process import run_child
from mace_train.environment_variables import number
from mace_train.errors import InputError, StorageError
from mace_train.evaluate.compare import best_epoch, read_metrics
from mace_train.folders import lock_folder, make_folder
from mace_train.settings import SweepSettings, TuneSettings
from mace_train.sweep.job_status import recorded
from mace_train.sweep.jobs import parsed
from mace_train.sweep.sweep import summarise

LOGGER = logging.getLogger("mace_train")


def tune(settings: TuneSettings) -> None:
    """Run trials until the search has as many as it should; then summarise them.

    Raises ``SystemExit`` (75) when a training was asked to stop: the same command continues.
    """
    output = Path(settings.output)
    overrides = parsed(as_files("training", settings.training))
    searched = [override for override in overrides if override.is_sweep_override()]
    fixed = [str(override.input_line) for override in overrides if override not in searched]
    _check(searched, fixed)
    make_folder("output", output)
    study = _study(output, settings.seed)
    distributions = {o.get_key_element(): _distribution(o) for o in searched}
    LOGGER.info("search over %s in %s", ", ".join(distributions), output)
    while True:
        claimed = _interrupted(study, output) or _new(study, settings, distributions, output)
        if claimed is None:
            break
        trial, lock = claimed
        with lock:
            _try(study, trial, fixed, settings, output / str(trial.number))
    summarise(SweepSettings(folder=str(output), by=settings.by))


def _check(searched: list[Override], fixed: list[str]) -> None:
    if not searched:
        raise InputError(
            "tune has nothing to search: after `--` give a setting several values, such as "
            "model=tiny,small, or a range, such as optimizer.lr='tag(log,interval(1e-4,1e-2))'"
        )
    kept = [word for word in fixed if word.split("=")[0] in ("output", "restart_latest")]
    if kept:
        raise InputError(f"{kept[0]}: tune sets this for each trial; leave it out after `--`")


def _study(output: Path, seed: int) -> Any:
    """The search that all commands on ``output`` share."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError("tune needs Optuna: pip install 'mace-train[sweeps]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _complete(output / "search.journal")
    storage = JournalStorage(JournalFileBackend(str(output / "search.journal")))
    study = optuna.create_study(storage=storage, study_name="tune", load_if_exists=True)
    # commands that share a search, and later ones that continue it, draw other numbers
    worker = number("SLURM_ARRAY_TASK_ID") or 0
    seed += len(study.get_trials(deepcopy=False)) + 1000 * worker
    study.sampler = optuna.samplers.TPESampler(seed=seed % 2**32)  # of numpy
    return study


def _complete(journal: Path) -> None:
    """Cut off half a line, which a full disk or a kill has left, and which Optuna cannot read."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not journal.exists() or journal.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()  # no other command is writing
    try:
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _distribution(override: Override) -> Any:
    """What Optuna draws a setting from: choices, a range of numbers, or its logarithm."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value, key = override.value(), override.get_key_element()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(value, IntervalSweep):
        is_log = "log" in value.tags
        whole = {type(value.start), type(value.end)} == {int}
        distribution = IntDistribution if whole and "float" not in value.tags else FloatDistribution
        return distribution(value.start, value.end, log=is_log)
    if isinstance(value, RangeSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise InputError(f"{key}: tune searches choices, choice(...), interval(...) and range(...)")


def _interrupted(study: Any, output: Path) -> tuple[Any, IO[str]] | None:
    """A trial that no running command holds, though it has not ended; None if there is none."""
    from optuna.trial import Trial, TrialState

    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = output / str(frozen.number)
        make_folder("output", folder / "claim")
        try:
            lock = lock_folder("output", folder / "claim")
        except InputError:
            continue  # its command is at work
        if study.get_trials(deepcopy=False)[frozen.number].state == TrialState.RUNNING:
            LOGGER.info("trial %d was interrupted and continues", frozen.number)
            return Trial(study, frozen._trial_id), lock
        lock.close()
    return None


def _new(
    study: Any, settings: TuneSettings, distributions: dict[str, Any], output: Path
) -> tuple[Any, IO[str]] | None:
    """The next trial; None if there are as many as there should be."""
    if len(study.get_trials(deepcopy=False)) >= settings.trials:
        return None
    trial = study.ask(distributions)
    folder = output / str(trial.number) / "claim"
    make_folder("output", folder)
    return trial, lock_folder("output", folder)


def _try(study: Any, trial: Any, fixed: list[str], settings: TuneSettings, folder: Path) -> None:
    """Train with the proposed settings and report the result to Optuna."""
    from optuna.trial import TrialState

    words = [*fixed, *(f"{name}={value}" for name, value in trial.params.items())]
    LOGGER.info("trial %d: %s", trial.number, " ".join(words[len(fixed) :]))
    try:
        with recorded(folder, words, folder / "log.txt"):
            _train([*words, f"output='{folder}'", "restart_latest=true"], settings, folder)
            error = float(best_epoch(read_metrics(folder))[settings.by])
    except StorageError:
        raise  # no fault of the trial, which continues with the next command
    except (InputError, KeyError) as failure:
        LOGGER.error("trial %d failed: %s", trial.number, failure)
        study.tell(trial, state=TrialState.FAIL)
        return
    study.tell(trial, error)
    LOGGER.info("trial %d: %s %.5g", trial.number, settings.by, error)


def _train(words: list[str], settings: TuneSettings, folder: Path) -> None:
    """Run one training; InputError with the last line of its log if it fails."""
    launch = shlex.split(settings.launch)
    is_torchrun = bool(launch) and Path(launch[0]).name == "torchrun"
    program = [] if is_torchrun else [sys.executable]
    command = [*launch, *program, "-m", "mace_train", "train", *words]
    log = folder / "log.txt"
    with open(log, "a") as handle:
        begin = handle.tell()
        code = run_child(
            command, stdout=handle, stderr=subprocess.STDOUT, is_training=True
        ).returncode
    text = log.read_bytes()[begin:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if is_torchrun:
        code = _exit_code_of_ranks(text) or code
    said = [line for line in lines if line.startswith("mace-train: ") and "error: " in line]
    last = (said or lines or [f"the training ended with code {code}"])[-1]
    if code == os.EX_TEMPFAIL or (is_torchrun and any("stopped by" in s for s in lines[-3:])):
        raise SystemExit(os.EX_TEMPFAIL)
    if code == StorageError.exit_code:
        raise StorageError(f"trial in {folder}: {last.rpartition('error: ')[2]}")
    if code == interrupts.EXIT_CODE:
        raise KeyboardInterrupt
    if code != 0:
        raise InputError(last)


def _exit_code_of_ranks(text: str) -> int | None:
    """The one of the first rank that failed, in the report of torchrun, which ends with 1."""
    found = re.search(r"Root Cause.*?exitcode\s*: (\d+)", text, re.DOTALL)
    return int(found[1]) if found else None
