"""Heartbeats: what every rank is doing, for the message when one of them hangs.

A thread of every rank writes (count, step, phase) to the store every second. When a collective
times out, the ranks read each other's heartbeats twice: a rank whose count is unchanged is stopped
or dead, one whose count increases but whose step is behind is stuck in its own code.
"""

import os
import socket
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

from mace_train import interrupts
from mace_train.distributed.messages import decode_record, encode_record

INTERVAL_S = 1.0
_TYPES = {"count": int, "step": int, "phase": str, "host": str, "pid": int}


class Heartbeat:
    """Heartbeat of one rank; the training sets ``step`` and ``phase``."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.step, self.phase = 0, "start"
        self._store, self._rank, self._size = store, rank, size
        self._count = 0
        self._stopped = threading.Event()
        interrupts.tell_by(self._tell_interrupt)
        self._beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            try:
                self._beat()
            except RuntimeError:  # the store's host process has exited
                return

    def _beat(self) -> None:
        self._count += 1
        beat = encode_record(
            count=self._count,
            step=self.step,
            phase=self.phase,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._store.set(f"beat/{self._rank}", beat)

    def _tell_interrupt(self) -> None:
        """Tell ranks that lose the connection to this one why."""
        with suppress(RuntimeError):
            self._store.set("interrupted", str(self._rank))

    def is_interrupted(self) -> bool:
        """Whether a rank was interrupted (SIGINT), as far as the store still answers."""
        box: list[bool] = []
        reader = threading.Thread(target=lambda: box.append(self._check_interrupted()), daemon=True)
        reader.start()
        reader.join(timeout=INTERVAL_S)
        return interrupts.received() or any(box)

    def _check_interrupted(self) -> bool:
        try:
            return bool(self._store.check(["interrupted"]))
        except RuntimeError:
            return False

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        self._thread.join(timeout=2 * INTERVAL_S)

    def missing(self, patience_s: float = 10.0) -> str:
        """Which ranks keep the others waiting, as a sentence; takes a few seconds."""
        box: list[str] = []
        reader = threading.Thread(target=lambda: box.append(self._read()), daemon=True)
        reader.start()
        reader.join(timeout=3 * INTERVAL_S + patience_s)
        # without torchrun the store ends with rank 0: let the others read first
        if self._rank == 0:
            self._stopped.wait(4 * INTERVAL_S)
        return (
            box[0]
            if box
            else "the store does not answer: rank 0 or its host is stopped, gone or cut off"
        )

    def _read(self) -> str:
        try:
            before = self._beats()
            self._stopped.wait(2.5 * INTERVAL_S)
            after = self._beats()
        except RuntimeError as error:
            return f"the store does not answer ({error}): rank 0 or its host is gone"
        except ValueError as error:
            return f"the heartbeats in the store are not those of the ranks ({error})"
        silent = [rank for rank, beat in enumerate(after) if beat == before[rank]]
        silent = [rank for rank in silent if rank != self._rank]
        if silent:
            return "; ".join(
                f"{_name(r, after[r])} is stopped, dead or cut off" for r in silent[:8]
            )
        furthest = max(_step(beat) for beat in after)
        behind = [rank for rank, beat in enumerate(after) if _step(beat) < furthest]
        if behind:
            return "; ".join(
                f"{_name(r, after[r])} runs but is behind the others (step {furthest})"
                for r in behind[:8]
            )
        return "all ranks run and are at the same step: the network between them is at fault"

    def _beats(self) -> list[dict[str, Any]]:
        keys = [f"beat/{rank}" for rank in range(self._size)]
        self._store.wait(keys, timedelta(seconds=5))
        return [decode_record(self._store.get(key), **_TYPES) for key in keys]


def _step(beat: dict[str, Any]) -> int:
    return int(beat["step"])


def _name(rank: int, beat: dict[str, Any]) -> str:
    return (
        f"rank {rank} (process {beat['pid']} on {beat['host']}, step {beat['step']}, "
        f"{beat['phase']})"
    )
