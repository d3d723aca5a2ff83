"""Records of epochs in metrics.jsonl, one JSON object a line, as ``log`` writes them."""

import json
from pathlib import Path
from typing import Any

from mace_train.errors import InputError
from mace_train.json_files import converted

_KINDS: dict[str, Any] = {  # in every record; what is not finite is null
    "epoch": int,
    "step": int,
    "stage": str,
    "train_loss": float | None,
    "structures": float,
    "epoch_s": float,
    "total_s": float,
}
_OTHER = float | str | None


def read_epoch_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; an incomplete last line, after a kill, is skipped.

    Raises ``InputError`` for a file that cannot be read, or a line that is no record.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    whole = [line for line in lines if line.endswith(b"\n")]
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]


def _record(line: bytes, where: str) -> dict[str, Any]:
    remedy = "remove or restore this line"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); {remedy}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where} is no record of an epoch; {remedy}")
    missing = [name for name in _KINDS if name not in record]
    if missing:
        raise InputError(f"{where} has no {', '.join(missing)}; {remedy}")
    try:
        for name, value in record.items():
            if not isinstance(value, float):  # which may be NaN or infinite
                converted(_KINDS.get(name, _OTHER), value, name)
    except ValueError as error:
        raise InputError(f"{where}: {error}; {remedy}") from None
    return record
