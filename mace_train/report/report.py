"""``mace-train report RUN``: one HTML page about a training, complete in itself, and its figures.

Epochs, settings and versions come from the run's folder; errors from its best checkpoint on the
run's own validation structures, or on others that the settings name, or from the output folder of
``mace-train evaluate``. Bins are those of evaluation, on any number of ranks. Writes report.html
and the figures (light) as PNG; the page works offline, on a phone, in light and dark.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mace_train.atomic_files import written_together
from mace_train.checks import as_files
from mace_train.data.raw_structure import AtomsLike
from mace_train.data.read import parsed_structures
from mace_train.data.structure import LabelKeys, structure_from_atoms
from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError
from mace_train.evaluate.evaluate import evaluated
from mace_train.evaluate.parity_plot import Predicted
from mace_train.folders import existing_folder, make_folder
from mace_train.json_files import read_json
from mace_train.report import plots
from mace_train.report.error_tables import Errors
from mace_train.report.page import ErrorSection, Page, rendered
from mace_train.report.run_folder import RunFolder, fill_of_bins, read_run
from mace_train.report.structure_map import StructureMap, map_pictures, structure_maps
from mace_train.settings import ReportSettings

LOGGER = logging.getLogger("mace_train")


def report(settings: ReportSettings) -> Path | None:
    """Write the report; the path of the page (on rank 0).

    Raises ``InputError`` for a folder without a training, or structures that cannot be evaluated.
    """
    path = existing_folder("run", settings.run)
    run = read_run(path)
    sets = [_read_evaluation(Path(p)) for p in as_files("evaluation", settings.evaluation)]
    if settings.test_file is None and settings.data_dir is None and not sets:
        settings = replace(settings, data_dir=str(_own_data(run, settings.split)))
    output = path / "report" if settings.output is None else Path(settings.output)
    with open_world(settings.cluster) as world:
        if not sets or settings.test_file is not None or settings.data_dir is not None:
            errors = _evaluate(settings, world, output)
            sets += [] if errors is None else [errors]
        elif world.is_main:
            make_folder("output", output)
        if not world.is_main:
            return None
        maps = structure_maps(run, settings, sets, world) if settings.map else [None] * len(sets)
        return _write(run, sets, maps, output, settings.worst)


def _evaluate(settings: ReportSettings, world: World, output: Path) -> Errors | None:
    """Errors on the structures that the settings name; None on other ranks than 0.

    ``output`` is made once it is known that they can be evaluated.
    """
    done = evaluated(settings.run, settings, world, output)
    if not world.is_main:
        return None
    files = ", ".join(as_files("test_file", settings.test_file))
    title = files or f"{settings.data_dir}/{settings.split}"
    structures = [done.source.sample(i).structure for i in range(len(done.source))]
    return Errors(title, structures, done.predicted)


def _own_data(run: RunFolder, split: str) -> Path:
    """The folder that a run was trained on; ``InputError`` if it or its split is gone."""
    others = "give data_dir=FOLDER, test_file=FILE or evaluation=FOLDER"
    if not run.data_dir.is_dir():
        raise InputError(f"{run.path} was trained on {run.data_dir}, which is not here; {others}")
    if not (run.data_dir / split).is_dir():
        raise InputError(f"{run.data_dir} has no {split}/; give split=train, or {others}")
    return run.data_dir


def _read_evaluation(folder: Path) -> Errors:
    """Labels and predictions that ``mace-train evaluate`` wrote."""
    path = folder / "predictions.extxyz"
    if not path.is_file():
        raise InputError(
            f"evaluation={folder}: no predictions.extxyz; give the output folder of "
            "`mace-train evaluate` (without predictions=false)"
        )
    keys = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
    structures, predicted = [], {}
    remedy = "give the output folder of `mace-train evaluate`"
    for i, (atoms, where) in enumerate(parsed_structures([str(path)])):
        source = str(atoms.info.get("source", where))
        structures.append(structure_from_atoms(atoms, keys, source, require_energy=False))
        try:
            predicted[i] = _prediction(atoms)
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: no prediction that can be read ({error}); {remedy}"
            ) from None
    record = read_json(folder / "errors.json", dict, remedy)
    return Errors(str(record.get("data", folder)), structures, predicted)


def _prediction(atoms: AtomsLike) -> Predicted:
    """What MACE_energy, MACE_forces and MACE_stress hold; any error if they are none."""
    stress = np.asarray(atoms.info.get("MACE_stress", np.zeros((3, 3))), np.float64)
    forces = np.asarray(atoms.arrays["MACE_forces"], np.float64)
    return Predicted(
        float(atoms.info["MACE_energy"]), forces.reshape(len(atoms), 3), stress.reshape(3, 3)
    )


def _write(
    run: RunFolder,
    sets: list[Errors],
    maps: Sequence[StructureMap | None],
    output: Path,
    n_worst: int,
) -> Path:
    """Draw, render and write everything."""
    fill = fill_of_bins(run)
    sections = [
        ErrorSection(
            errors,
            plots.parity(errors, prefix),
            plots.distribution(errors, prefix),
            [] if found is None else map_pictures(errors, found, prefix),
            errors.worst(errors.forces_rmse, n_worst),
            errors.worst(abs(errors.energy), n_worst),
        )
        for errors, prefix, found in zip(sets, _prefixes(len(sets)), maps, strict=True)
    ]
    page = Page(run, sections, plots.learning(run), plots.balance(run, fill), plots.time(run), fill)
    with written_together(output) as new:
        for picture in page.pictures:
            (new / f"{picture.name}.png").write_bytes(picture.light)
        (new / "report.html").write_text(rendered(page), encoding="utf-8")
    path = output / "report.html"
    LOGGER.info("wrote %s and %d figures beside it", path, len(page.pictures))
    return path


def _prefixes(n: int) -> list[str]:
    """Beginnings of file names that tell the figures of several sets apart."""
    return [""] if n == 1 else [f"set{k + 1}_" for k in range(n)]
