"""``mace-train import``: a model of mace-torch -> a checkpoint that every command takes."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols
from rich.table import Table
from torch import Tensor

from mace_train.console import Console
from mace_train.errors import InputError
from mace_train.folders import make_folder
from mace_train.foundation_models.lookup import check_licence, found_file, model_file, named
from mace_train.foundation_models.table import MODELS, FoundationModel
from mace_train.interop.equivalence import (
    TOLERANCE,
    TOLERANCE_SINGLE,
    check_equivalence,
    predictions,
    was_built_in_float32,
)
from mace_train.interop.header import Header
from mace_train.interop.probe_structures import probes
from mace_train.interop.state_dict import from_mace_torch, header_for
from mace_train.interop.state_files import read_file, read_header
from mace_train.interop.stored_model import header_and_tensors
from mace_train.interop.subprocess_client import build_mace_torch, has_mace_torch, read_mace_torch
from mace_train.model.mace import MACE
from mace_train.model.surgery import one_head, with_elements
from mace_train.restricted_pickle import RestrictedPickleError
from mace_train.settings import ImportSettings
from mace_train.train.checkpoint import model_header, save, with_prefix

LOGGER = logging.getLogger("mace_train")
SAFE_WAYS = (
    "give its state dict (.safetensors or .pt) with header=FILE, or, if you trust its author, "
    "trust=true, with which mace-torch loads it"
)


def import_or_list(settings: ImportSettings) -> None:
    """The command: without a file or name, the table of foundation models."""
    if settings.model_file is None:
        Console().print(_table_of_names())
    else:
        import_model(settings)


def import_foundation_model(model: FoundationModel, output: Path) -> None:
    """Import to a folder; the licence has been accepted."""
    import_model(
        ImportSettings(model_file=model.name, accept_licence=model.licence, output=str(output))
    )


def import_model(settings: ImportSettings) -> MACE:
    """Read, compare with mace-torch where it is at hand, cut to the elements, write."""
    given = settings.model_file or ""
    target = Path(settings.output) / "checkpoints" / "best.safetensors"
    named_model = named("model_file", given)
    if named_model is None and not Path(given).is_file():
        raise InputError(
            f"model_file={given}: no such file; give one, or a name that `mace-train import` lists"
        )
    if target.exists():
        raise InputError(f"output={settings.output} already holds {target}; choose another output")
    check_licence(named_model, settings.accept_licence, "accept_licence")
    numbers = None if settings.elements is None else _numbers(settings.elements)
    if settings.header is not None and not Path(settings.header).is_file():
        raise InputError(f"header={settings.header}: no such file; give the JSON of a state dict")
    path = Path(given) if named_model is None else model_file(named_model)
    header, tensors, theirs = _read(path, settings)
    model = from_mace_torch(tensors, header)
    if theirs is None:
        LOGGER.warning("%s: not compared with mace-torch, which is not installed", path)
    else:
        single = was_built_in_float32(tensors)
        if single:
            LOGGER.info("%s was built in float32; its rounded constants are replaced by ours", path)
        tolerance = TOLERANCE_SINGLE if single else TOLERANCE
        _compare(f"{path}: ours and mace-torch's", model, theirs, tolerance)
    if settings.head is not None:
        model = _of_head(model, settings.head)
    if numbers is not None:
        model = _reduced(model, numbers)
    make_folder("output", target.parent)
    dtype = str(model.dtype).removeprefix("torch.")
    source = {"file": path.name, "header": header}
    if named_model is not None:
        source |= {"name": named_model.name, "licence": named_model.licence}
    save(
        target,
        with_prefix("model.", dict(model.named_parameters())),
        {**model_header(model), "default_dtype": dtype, "imported": source},
    )
    LOGGER.info("wrote %s (%s)", target, dtype)
    return model


def _table_of_names() -> Table:
    """Names, licences, sizes, and whether a cache has the file."""
    table = Table("name", "model", "licence", "MB", "here", box=None)
    for model in MODELS.values():
        is_here = "yes" if found_file(model) else ""
        table.add_row(model.name, model.title, model.licence, model.size, is_here)
    return table


def _read(
    path: Path, settings: ImportSettings
) -> tuple[Header, dict[str, Tensor], dict[str, Tensor] | None]:
    """Header, tensors and mace-torch's predictions, if it is there to make any."""
    try:
        content = read_file(path)
        if isinstance(content, Mapping):
            header, tensors = read_header(path, settings.header), dict(content)
        elif not settings.trust:
            header, tensors = header_and_tensors(content)
            LOGGER.info("%s is a pickle: only its tensors were read, nothing in it was run", path)
        else:
            return _run(path)
    except RestrictedPickleError as error:
        if settings.trust:
            return _run(path)
        raise InputError(
            f"{path} cannot be read without running what is in it ({error}); {SAFE_WAYS}"
        ) from error
    if not has_mace_torch():
        return header, tensors, None
    complete = {**header_for(from_mace_torch(tensors, header)), **header}
    return header, tensors, build_mace_torch(str(path), complete, tensors)


def _run(path: Path) -> tuple[Header, dict[str, Tensor], dict[str, Tensor]]:
    """The same of a whole model, which mace-torch loads in a process of its own."""
    LOGGER.warning(
        "trust=true: %s is a pickle, and loading it with mace-torch runs what is in it; do so only "
        "with files that you trust",
        path,
    )
    found = read_mace_torch(path)
    return found.header, found.tensors, found.predictions


def _compare(what: str, model: MACE, theirs: dict[str, Tensor], tolerance: float) -> None:
    graph = probes(list(model.data.atomic_numbers), model.data.r_max, model.inputs)
    check_equivalence(what, graph, predictions(model, graph), theirs, tolerance)


def _of_head(model: MACE, name: str) -> MACE:
    """The model of one head, compared with that of all."""
    before, dtype = copy.deepcopy(model).double(), model.dtype
    after = one_head(before, name)
    graph = probes(list(model.data.atomic_numbers), model.data.r_max, model.inputs)
    place = model.data.head_names.index(name)
    same = {key: tensor[place : place + 1] for key, tensor in predictions(before, graph).items()}
    check_equivalence(f"head {name}", graph, predictions(after, graph), same)
    return after.to(dtype)


def _reduced(model: MACE, numbers: list[int]) -> MACE:
    """The model of fewer elements, compared with that of all on structures of these alone."""
    before, dtype = copy.deepcopy(model).double(), model.dtype
    known = model.data.atomic_numbers
    unknown = [chemical_symbols[z] for z in numbers if z not in known]
    if unknown:
        raise InputError(
            f"elements: the model does not know {', '.join(unknown)}; its elements are "
            f"{', '.join(chemical_symbols[z] for z in known)}"
        )
    after = with_elements(before, numbers)
    kept = list(after.data.atomic_numbers)
    graph = probes(kept, model.data.r_max, model.inputs)
    place = torch.tensor([known.index(z) for z in kept])
    same = replace(graph, elements=place[graph.elements])
    what = f"{len(kept)} of {len(known)} elements"
    check_equivalence(what, graph, predictions(after, graph), predictions(before, same))
    return after.to(dtype)


def _numbers(elements: list[Any]) -> list[int]:
    """Atomic numbers from symbols or numbers."""
    numbers = []
    for element in elements:
        number = element if isinstance(element, int) else number_of.get(str(element))
        if number is None or not 1 <= number < len(number_of):
            raise InputError(f"elements: {element!r} is no element; write symbols, such as [H,C,O]")
        numbers.append(number)
    return numbers
