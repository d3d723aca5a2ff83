"""The structures that settings name: looked for before a model is loaded or anything is read."""

from typing import Any

from mace_train.checks import as_files
from mace_train.data.read.files import check_files
from mace_train.data.statistics import split_statistics
from mace_train.errors import InputError
from mace_train.folders import existing_folder


def check_named_set(setting: str, files: Any, data_dir: str | None, split: str) -> None:
    """InputError unless either files that are there or a split of a preprocessed folder is named.

    ``setting`` is the one that names the ``files``; data_dir and split name the other.
    """
    given = as_files(setting, files)
    if bool(given) == (data_dir is not None):
        both = "; they are both given" if given else ""
        raise InputError(f"give either {setting}=FILE or data_dir=FOLDER (with split=...){both}")
    if data_dir is None:
        check_files(given, log=False)
    else:
        split_statistics(existing_folder("data_dir", data_dir), split)
