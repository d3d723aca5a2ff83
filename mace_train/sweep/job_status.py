"""Status of each job of a sweep, in ``job.json`` of its folder, written by rank 0.

A job that is killed cannot update it: it stays ``running``, with the host, the process and the
path of its log.
"""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mace_train import environment_variables
from mace_train.atomic_files import write_text
from mace_train.errors import InputError, system_error
from mace_train.folders import make_folder
from mace_train.json_files import converted, read_json

FILE = "job.json"
_STOPPED = (  # exit codes after a signal
    *(0, os.EX_TEMPFAIL),
    *(128 + number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)),
)
_KINDS = {  # of what is read again
    "state": str,
    "overrides": list[str],
    "host": str,
    "process": int,
    "started": float,
    "log": str | None,
    "error": str | None,
    "exit_code": int | None,  # not in older files
}


@contextmanager
def recorded(folder: Path, overrides: list[str], log: Path | None = None) -> Iterator[None]:
    """Keep the record of a job: running, then done, stopped (by a signal) or failed.

    ``log`` is where its messages go, by default those of this process. An exception is noted and
    raised again.
    """
    make_folder("output", folder)
    job = environment_variables.text("SLURM_JOB_ID")
    record: dict[str, Any] = {
        "state": "running",
        "overrides": overrides,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.time(),
        "log": _log() if log is None else str(log),
        **({"slurm_job": job} if job else {}),
    }
    _write(folder, record)
    try:
        yield
        record["state"] = "done"
    except (KeyboardInterrupt, SystemExit) as end:
        code = getattr(end, "code", None)
        stopped = isinstance(end, KeyboardInterrupt) or code in _STOPPED
        record |= {"state": "stopped"} if stopped else {"state": "failed", "error": f"code {code}"}
        raise
    except BaseException as error:
        explained = system_error(error)
        if explained is not None:
            code = explained.exit_code
            record |= {"state": "failed", "error": str(explained), "exit_code": code}
            raise
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
        record |= {"state": "failed", "error": last}
        raise
    finally:
        record["ended"] = time.time()
        failed = record["state"] != "done"  # its error is the one to show, not that of the record
        with suppress(InputError) if failed else nullcontext():
            _write(folder, record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the job in ``folder``; None if there is none.

    Raises ``InputError`` if the file is none of ours.
    """
    path = folder / FILE
    if not path.exists():
        return None
    remedy = "remove or restore it"
    record = read_json(path, dict, remedy)
    try:
        for name, kind in _KINDS.items():
            converted(kind, record.get(name), name)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
    return record


def job_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs in their order."""
    folders = (path.parent for path in sweep.glob(f"*/{FILE}"))
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_text(folder / FILE, json.dumps(record, indent=1) + "\n")


def _log() -> str | None:
    """The file that the messages of this process go to, if it is one."""
    log = environment_variables.text("MACE_TRAIN_LOG")
    if log is not None:  # from slurm/common.sh: under srun they go through a pipe
        return log
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return None
    return path if os.path.isfile(path) else None
