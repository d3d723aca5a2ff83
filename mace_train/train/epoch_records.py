"""What a record of an epoch in metrics.jsonl holds, so that a damaged line is found."""

from typing import Any

from mace_train.json_files import converted

_TYPES: dict[str, Any] = {  # in every record; what is not finite is null
    "epoch": int,
    "step": int,
    "stage": str,
    "train_loss": float | None,
    "structures": float,
    "epoch_s": float,
    "total_s": float,
}
_OTHER = float | str | None


def checked_epoch_record(record: Any) -> dict[str, Any]:
    """The record that a line of metrics.jsonl holds; ValueError, which names why it is none."""
    if not isinstance(record, dict):
        raise ValueError(f"{str(record)[:40]} is no record of an epoch")
    missing = [name for name in _TYPES if name not in record]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    for name, value in record.items():
        of_name = _TYPES.get(name, _OTHER)
        if of_name in (int, str) or not isinstance(value, float):  # a float may be NaN
            converted(of_name, value, name)
    return record
