"""YAML files of users and of runs: read without building anything but plain values."""

from pathlib import Path
from typing import Any

import yaml

from mace_train.errors import InputError, system_error


def read_yaml(path: Path, remedy: str = "correct it") -> Any:
    """The content of a YAML file; ``InputError`` with one line that ends in ``remedy``."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise system_error(error, path) or InputError(
            f"{path}: cannot be read ({error.strerror}); {remedy}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error}); {remedy}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {explain_yaml(error)}; {remedy}") from None
    except RecursionError:
        raise InputError(f"{path}: not YAML: nested too deeply; {remedy}") from None
    except Exception as error:  # PyYAML makes numbers and dates of what is none: any error
        raise InputError(f"{path}: not YAML: a value cannot be read ({error}); {remedy}") from None


def explain_yaml(error: Exception) -> str:
    """What is wrong in a YAML file, and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark, context = error.problem_mark, f"{error.context}: " if error.context else ""
        where = "" if str(mark.name).startswith("<") else f"{mark.name}, "
        return f"{where}line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    return " ".join(str(error).split())
