"""The map of a report: principal components as numpy finds them, from the run's own data."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from mace_train.calculators import MACETrainCalculator
from mace_train.data.labelled_atoms import labelled_atoms
from mace_train.data.statistics import open_split
from mace_train.distributed.world import open_world
from mace_train.evaluate.parity_plot import Predicted
from mace_train.report import pictures, structure_map
from mace_train.report.error_tables import Errors
from mace_train.report.pictures import LIGHT
from mace_train.report.run_folder import read_run
from mace_train.report.structure_map import Plane, map_pictures, structure_maps
from mace_train.settings import ClusterSettings, ReportSettings
from tests.conftest import run_command

CPU = ClusterSettings(device="cpu", kernels="reference")
NAMES = ("map_config_types", "map_force_errors", "map_energy_errors")


def errors_of(shards):
    structures = [shards.sample(i).structure for i in range(len(shards))]
    predicted = {
        i: Predicted(s.energy + 0.1 * i, s.forces + 0.01, s.cell * 0)
        for i, s in enumerate(structures)
    }
    return Errors("some", structures, predicted)


def maps_of(trained, sets, **changes):
    settings = ReportSettings(run=str(trained), cluster=CPU, **changes)
    with open_world(CPU) as world:
        return structure_maps(read_run(trained), settings, sets, world)


def mean_descriptors(trained, shards):
    calculator = MACETrainCalculator(trained, device="cpu")
    found = []
    for i in range(len(shards)):
        atoms = labelled_atoms(shards.sample(i).structure)
        found.append(calculator.get_descriptors(atoms).mean(axis=0))
    return np.array(found, dtype=float)


def test_it_is_the_plane_of_the_training_set(trained, prepared):
    train, valid = open_split(prepared, "train"), open_split(prepared, "valid")
    errors = errors_of(valid)
    (found,) = maps_of(trained, [errors])
    expected = mean_descriptors(trained, train)
    _, values, vectors = np.linalg.svd(expected - expected.mean(axis=0), full_matrices=False)
    shares = values**2 / (values**2).sum()
    np.testing.assert_allclose(found.plane.shares, shares[:2], rtol=1e-4)
    projected = (expected - expected.mean(axis=0)) @ vectors[:2].T
    scale = np.abs(projected).max()
    np.testing.assert_allclose(np.abs(found.training), np.abs(projected), atol=1e-4 * scale)
    assert found.training_types == train.config_types
    own = (mean_descriptors(trained, valid) - expected.mean(axis=0)) @ vectors[:2].T
    np.testing.assert_allclose(np.abs(found.positions), np.abs(own), atol=1e-4 * scale)
    assert found.ids.tolist() == list(range(len(valid)))


def test_large_sets_are_drawn_from(trained, prepared):
    errors = errors_of(open_split(prepared, "valid"))
    one, other = (maps_of(trained, [errors], map_structures=5)[0] for _ in range(2))
    assert one.training.shape == one.positions.shape == (5, 2)
    assert one.ids.tolist() == other.ids.tolist() == sorted(set(one.ids.tolist()))


def test_signs_do_not_depend_on_chance():
    points = np.random.default_rng(0).standard_normal((30, 5)) * [5, 3, 1, 1, 1]
    plane, reverse = Plane.of(points), Plane.of(points[::-1])
    np.testing.assert_allclose(plane.axes, reverse.axes, atol=1e-9)
    assert (plane.axes.max(axis=0) == np.abs(plane.axes).max(axis=0)).all()
    assert Plane.of(np.ones((4, 1))).positions(np.ones((4, 1))).tolist() == [[0.0, 0.0]] * 4


@pytest.fixture
def _coarse(monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 60)


@pytest.mark.usefixtures("_coarse")
def test_the_report_shows_it_when_asked(trained, tmp_path):
    run_command("report", trained, f"output={tmp_path / 'with'}", "map=true", "cluster=cpu")
    text = (tmp_path / "with" / "report.html").read_text()
    assert "<h3>Map</h3>" in text
    for name in NAMES:
        image = imread(tmp_path / "with" / f"{name}.png")
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50
    run_command("report", trained, f"output={tmp_path / 'without'}", "cluster=cpu")
    assert "<h3>Map</h3>" not in (tmp_path / "without" / "report.html").read_text()
    assert not [path for path in (tmp_path / "without").iterdir() if "map" in path.name]


@pytest.mark.usefixtures("_coarse")
@pytest.mark.parametrize("ends", [(3.0, 240.0), (28.0, 33.0), (1e-6, 1.0), (12.0, 15_000.0)])
def test_the_bar_of_errors_is_labelled_at_both_ends(ends):
    ticks = structure_map._ticks(*ends)
    assert (ticks[0], ticks[-1]) == ends
    gaps = np.diff(np.log(ticks)) / np.log(ends[1] / ends[0])
    assert len(ticks) == 2 or gaps.min() > 0.15
    labels = structure_map._labels(*ends, some_are_lower=True)
    assert len(labels) == len(ticks)
    assert labels[0].startswith("≤ ")


def test_what_is_drawn_is_in_the_legend(trained, prepared, monkeypatch):
    errors = errors_of(open_split(prepared, "valid"))
    (found,) = maps_of(trained, [errors])
    drawn = []
    monkeypatch.setattr(
        structure_map, "picture", lambda name, title, text, draw, height: drawn.append(draw)
    )
    structure_map.map_pictures(errors, found, "")
    for draw in drawn[1:]:
        axes = Figure().add_subplot()
        draw(axes, LIGHT)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            "training",
            "evaluated",
        ]
        bar = axes.figure.axes[1]
        low, high = bar.get_ylim()
        assert bar.get_yticks()[[0, -1]] == pytest.approx([low, high])
        assert len(bar.get_yticklabels()) == len(bar.get_yticks())


def test_without_the_training_data(trained, prepared, tmp_path, capsys):
    """The map is of the evaluated structures alone, which is said."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(trained, run)
    shutil.copytree(prepared, data)
    found = read_run(run)
    gone = replace(found, settings={**found.settings, "data_dir": str(tmp_path / "gone")})
    (run / "repeat.yaml").unlink()
    errors = errors_of(open_split(data, "valid"))
    settings = ReportSettings(run=str(run), cluster=CPU, map=True)
    with open_world(CPU) as world:
        (only,) = structure_maps(gone, settings, [errors], world)
    assert not len(only.training)
    assert len(only.positions) == len(errors.structures)
    drawn = map_pictures(errors, only, "")
    assert [p.name for p in drawn] == list(NAMES)
    assert "evaluated structures, coloured by config_type" in drawn[0].caption


@pytest.mark.usefixtures("_coarse")
def test_structures_without_labels_or_errors(trained, prepared):
    valid = open_split(prepared, "valid")
    structures = [valid.sample(i).structure for i in range(6)]
    same = {i: Predicted(s.energy, s.forces, s.cell * 0) for i, s in enumerate(structures)}
    errors = Errors("exact", structures, same)
    (found,) = maps_of(trained, [errors])
    assert [p.name for p in map_pictures(errors, found, "set1_")] == [f"set1_{n}" for n in NAMES]
    bare = [replace(s, energy=None, forces=None, stress=None) for s in structures]
    unlabelled = Errors("bare", bare, same)
    assert [p.name for p in map_pictures(unlabelled, found, "")] == list(NAMES[:1])
