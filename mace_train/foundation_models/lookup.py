"""A foundation model's file and its checkpoint: from mace-torch's cache, from ours, or the web.

A file lies in ``~/.cache/mace-train/foundation_models`` (or ``XDG_CACHE_HOME``) under the name it
was published with, and what was imported from it in ``imported/`` there. Files are compared with
the SHA-256 of the table, or with that of the first download (``NAME.sha256`` beside it). Those in
mace-torch's cache, which may be cut short, are used if they agree, and never changed.
"""

import logging
import os
import pkgutil
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mace_train import environment_variables
from mace_train.atomic_files import write_text
from mace_train.checks import check_choice, nearest
from mace_train.errors import InputError, StorageError, system_error
from mace_train.folders import lock_file
from mace_train.foundation_models.download import download, is_torch_file, sha256_of
from mace_train.foundation_models.table import (
    LICENCES,
    MODELS,
    NOT_READ,
    TO_ACCEPT,
    FoundationModel,
)

LOGGER = logging.getLogger("mace_train")
# of a higher floor, so by its name, as cli names the functions of commands
_IMPORT = "mace_train.interop.import_model:import_foundation_model"


def named(setting: str, value: str) -> FoundationModel | None:
    """The foundation model that the value of a setting names; None if it is a path.

    A file or folder of this name comes first, and what has a folder or a suffix is a path.

    Raises:
        InputError: a name that is nearly one of the table, or one whose model cannot be read.
    """
    if os.path.exists(value) or os.sep in value or Path(value).suffix:
        return None
    if value in NOT_READ:
        raise InputError(f"{setting}={value}: {NOT_READ[value]}")
    if value in MODELS:
        return MODELS[value]
    by_words = {_words(name): name for name in (*MODELS, *NOT_READ)}
    near, parts = nearest(_words(value), by_words, 0.75), set(_words(value).split())
    if near is None and len(parts) > 1:
        near = next((words for words in by_words if parts <= set(words.split())), None)
    if near is not None:
        raise InputError(
            f"{setting}={value}: no such file or folder, and no foundation model has this name "
            f"(did you mean {by_words[near]}?); `mace-train import` lists the names"
        )
    return None


def _words(name: str) -> str:
    """The words of a name in alphabetical order."""
    return " ".join(sorted(re.findall(r"[a-z0-9]+", name.lower())))


def check_licence(model: FoundationModel | None, accepted: str | None, setting: str | None) -> None:
    """InputError unless the licence permits any use or ``accepted`` names it.

    A licence that is accepted and is not the model's, or of what is no foundation model by its name
    (None), is logged. ``setting`` is what accepts it, such as ``foundation.accept_licence``; None
    where a command has none, or in Python.
    """
    if accepted == (None if model is None else model.licence):
        return
    if model is None or model.licence not in TO_ACCEPT:
        if accepted is not None:
            LOGGER.warning(
                "%s=%s is not used: %s",
                *(setting or "accept_licence", accepted),
                "it is for foundation models by their names"
                if model is None
                else f"{model.name} is published under the {LICENCES[model.licence]}",
            )
        return
    way = f"say so with {setting}={model.licence}"
    if setting is None:
        way = (
            f"import it with `mace-train import {model.name} accept_licence={model.licence} "
            f"output=FOLDER` and give FOLDER instead (in Python: accept_licence='{model.licence}')"
        )
    other = f"{accepted} is not its licence: " if accepted else ""
    raise InputError(
        f"{other}{model.name} ({model.title}) is published under the {LICENCES[model.licence]}; if "
        f"you accept it, {way}"
    )


def check_licence_name(setting: str, value: str | None) -> None:
    """InputError unless the value of a setting is None or a licence of the table."""
    if value is not None:
        check_choice(setting, value, tuple(LICENCES))


def cache_folder() -> Path:
    """Where downloaded files and imported checkpoints are kept."""
    return _caches() / "mace-train" / "foundation_models"


def _caches() -> Path:
    base = environment_variables.folder("XDG_CACHE_HOME")
    return base or environment_variables.home() / ".cache"


def found_file(model: FoundationModel) -> Path | None:
    """The file where it lies, if it is in a cache; not verified."""
    return next((path for path in _places(model) if path.is_file()), None)


def _places(model: FoundationModel) -> list[Path]:
    """Where the file may be: our cache, then mace-torch's, by its two rules for names."""
    theirs = _caches() / "mace"
    plain = "".join(c for c in model.file if c.isalnum() or c == "_")
    return [cache_folder() / model.file, theirs / plain, theirs / model.file]


def model_file(model: FoundationModel) -> Path:
    """The verified file of a model, which is downloaded if no cache has it.

    Raises:
        InputError: it is neither there nor can be downloaded, or is another file; the message says
            which file, from where, and where to put it. ``StorageError`` where there is no room.
    """
    target, *theirs = _places(model)
    if not target.is_file():
        for path in theirs:
            if path.is_file() and _is_intact(path, model):
                return path
        _download(model, target)
    _verify(target, model)
    return target


def _is_intact(path: Path, model: FoundationModel) -> bool:
    """Whether a file in mace-torch's cache is the published one."""
    try:
        problem = _problem(path, model.sha256)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    if problem:
        LOGGER.warning("%s is not used: %s", path, problem)
    return not problem


def _verify(path: Path, model: FoundationModel) -> None:
    """InputError if the file in our cache is another one than was published or downloaded."""
    record = path.with_name(f"{path.name}.sha256")
    try:
        kept = record.read_text().split()[0] if record.is_file() else None
        problem = _problem(path, model.sha256 or kept)
    except (OSError, ValueError, IndexError) as error:
        problem = f"it, or its {record.name}, cannot be read ({error})"
    if problem:
        raise InputError(
            f"{path}: {problem}; remove it and {record.name}, and it is downloaded again, or give "
            "the path of another file"
        )


def _problem(path: Path, sha256: str | None) -> str | None:
    """What is wrong with a file that should have this SHA-256."""
    if not is_torch_file(path):
        return "it is no model of PyTorch, or cut short"
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        return f"its sha256 is {found}, not {sha256}"
    return None


def _download(model: FoundationModel, target: Path) -> None:
    """From the first address that gives it; one process downloads, others wait for it."""
    remedy = (
        f"download {model.file} from {model.addresses[0]} yourself, elsewhere if need be, and put "
        f"it to {target}, or give its path instead of {model.name}"
    )
    with _locked(target, f"the download of {model.file}", model.name, remedy):
        if target.is_file():
            return
        LOGGER.info(
            "downloading %s (%s MB, %s) to %s",
            *(model.addresses[0], model.size, model.licence, target),
        )
        try:
            found = download(model.addresses, target, n_bytes=model.n_bytes, sha256=model.sha256)
        except StorageError:
            raise
        except InputError as error:
            raise InputError(f"{model.name} cannot be downloaded: {error}; {remedy}") from None
        write_text(target.with_name(f"{model.file}.sha256"), f"{found}  {model.file}\n")


@contextmanager
def _locked(path: Path, work: str, name: str, remedy: str) -> Iterator[None]:
    """The lock of what is made in our cache; InputError where that cannot be written."""
    with ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened.enter_context(lock_file(path.with_name(f".{path.name}.lock"), work))
        except OSError as error:
            kind = type(system_error(error) or InputError())
            raise kind(
                f"{name}: the cache {path.parent} cannot be written ({error.strerror}); set "
                f"XDG_CACHE_HOME to a folder of yours, or {remedy}"
            ) from None
        yield


def imported_checkpoint(
    checkpoint: str | Path, accept_licence: str | None = None, setting: str | None = None
) -> Path:
    """The output folder of the import of a foundation model, for a name; any other path as it is.

    The first time, the model is imported to our cache. ``setting`` is what accepts its licence.

    Raises:
        InputError: see ``named``, ``check_licence``, ``model_file``; or it cannot be imported.
    """
    model = named("checkpoint", str(checkpoint))
    check_licence(model, accept_licence, setting)
    if model is None:
        return Path(checkpoint)
    name = model.name if model.sha256 is None else f"{model.name}-{model.sha256[:8]}"
    folder = cache_folder() / "imported" / name
    written = folder / "checkpoints" / "best.safetensors"
    if not written.is_file():
        remedy = f"import it elsewhere: mace-train import {model.name} output=FOLDER"
        with _locked(folder, f"the import of {model.name}", model.name, remedy):
            if not written.is_file():
                pkgutil.resolve_name(_IMPORT)(model, folder)
    LOGGER.info("%s: %s, %s; %s", model.name, model.title, model.licence, folder)
    return folder
