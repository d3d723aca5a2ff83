"""The report: complete in itself, true to the run, and readable in a browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from matplotlib.image import imread

from mace_train.data.structure import LabelKeys, structure_from_atoms
from mace_train.evaluate.parity_plot import Predicted
from mace_train.report import pictures, plots
from mace_train.report.error_tables import Errors
from tests.conftest import emt_structures, run_command
from tests.report.browser import look, measure

VOID = {"meta", "link", "img", "source", "wbr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects addresses, tables' cells and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [named[k] for k in ("src", "srcset", "href") if k in named]
        self.ids |= {named["id"]} if "id" in named else set()
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report") / "out"
    run_command("report", trained, f"output={output}", "worst=4", "cluster=cpu")
    return output


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text())


def test_it_needs_nothing_else(page):
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("data:", "#"))
        assert address[0] != "#" or address[1:] in page.ids


def test_it_holds_what_the_run_says(page, trained):
    provenance = json.loads((trained / "provenance.json").read_text())[-1]
    for words in (provenance["git"] or "none", provenance["libraries"]["torch"]):
        assert words in page.text
    settings = {row[0]: row[1] for row in page.rows if len(row) == 3}
    assert settings["max_num_epochs"] == "2"
    assert settings["model.num_channels"] == "4"
    assert "seed" not in settings  # a default
    phases = {row[0] for row in page.rows}
    assert {"compute", "data", "optimizer", "communication"} <= phases
    assert {"straggler ratio, predicted", "straggler ratio, measured", "mean fill, atoms"} <= phases


def test_its_errors_are_those_of_the_best_validation(page, trained):
    header = json.loads((trained / "checkpoints" / "best.json").read_text())
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = records[header["progress"]["best_epoch"]]
    headings = next(row for row in page.rows if "Force RMSEmeV/Å" in row)
    row = next(row for row in page.rows if row and row[0] == "all")
    for heading, key in (
        ("Force RMSEmeV/Å", "valid_forces_rmse_eV_per_A"),
        ("Energy MAEmeV/atom", "valid_energy_mae_eV_per_atom"),
        ("Stress RMSEmeV/Å³", "valid_stress_rmse_eV_per_A3"),
    ):
        shown = float(row[headings.index(heading)].replace(",", ""))
        assert shown == pytest.approx(1000 * best[key], rel=6e-3)
    names = {row[0] for row in page.rows if row}
    assert {"crystal", "molecule", "Al", "H", "N", "O"} <= names


def test_its_figures_lie_beside_it(folder):
    figures = {path.stem for path in folder.glob("*.png")}
    assert {"loss", "learning_forces", "parity_energy", "parity_forces", "parity_stress"} <= figures
    assert {"force_errors", "forces_by_size", "straggler", "fill", "time"} <= figures
    for path in folder.glob("*.png"):
        assert imread(path)[..., :3].std() > 0.01


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_it_reads_well_in_a_browser(folder, page, tmp_path, width, dark):
    picture = tmp_path / "page.png"
    console = look(folder / "report.html", picture, width, 3000, dark=dark)
    assert console == ""
    seen = imread(picture)[..., :3]
    assert seen.shape[:2] == (3000, width)
    assert seen.std() > 0.05
    assert (seen.mean() < 0.4) == dark
    window, whole, n_images, n_decoded = measure(folder / "report.html", tmp_path, width)
    assert whole <= window == width
    assert n_images == n_decoded == len(list(folder.glob("*.png")))


def test_the_browser_would_have_complained(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body><div style="width: 600px"><img src="data:image/png;base64,AAAA">'
        '<script>console.error("broken")</script></div></body>'
    )
    assert "broken" in look(bad, tmp_path / "bad.png", 390, 300)
    window, whole, n_images, n_decoded = measure(bad, tmp_path, 390)
    assert (window, n_images, n_decoded) == (390, 1, 0)
    assert whole >= 600


def errors_of(structures) -> Errors:
    keys = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
    random = np.random.default_rng(3)
    read_ones = [structure_from_atoms(a, keys, f"file, {i}") for i, a in enumerate(structures)]
    predicted = {
        i: Predicted(
            s.energy + random.normal(),
            s.forces + random.normal(size=s.forces.shape),
            np.zeros((3, 3)) if s.stress is None else s.stress + random.normal(),
        )
        for i, s in enumerate(read_ones)
    }
    return Errors("some", read_ones, predicted)


def test_groups_by_a_loop_over_structures():
    errors = errors_of(emt_structures(10, 4))

    def rmse(of_structure, of_atom=lambda s: slice(None)):
        chosen = [(i, s) for i, s in enumerate(errors.structures) if of_structure(s)]
        difference = [(errors.predicted[i].forces - s.forces)[of_atom(s)] for i, s in chosen]
        return np.sqrt(np.mean(np.concatenate(difference) ** 2))

    assert errors.all().forces_rmse == pytest.approx(rmse(lambda s: True))
    for row in errors.by("config_type"):
        assert row.forces_rmse == pytest.approx(rmse(lambda s, n=row.name: s.config_type == n))
        energies = [
            (errors.predicted[i].energy - s.energy) / s.n_atoms
            for i, s in enumerate(errors.structures)
            if s.config_type == row.name
        ]
        assert row.energy_mae == pytest.approx(np.mean(np.abs(energies)))
        assert (row.stress_rmse is not None) == (row.name == "crystal")
    nitrogen = next(row for row in errors.by_element() if row.name == "N")
    assert nitrogen.forces_rmse == pytest.approx(rmse(lambda s: True, lambda s: s.numbers == 7))
    assert nitrogen.energy_rmse is None
    sizes = errors.by_size()
    assert sum(row.n_structures for row in sizes) == len(errors.structures)
    assert sum(row.n_atoms for row in sizes) == errors.n_atoms.sum()


def test_heads_have_rows_and_zeros_of_their_own():
    structures = emt_structures(10, 4)
    for i, atoms in enumerate(structures):
        atoms.info["head"] = "pbe" if i % 2 else "r2scan"
        counts = np.bincount(atoms.numbers, minlength=14)[[1, 7, 8, 13]]
        atoms.info["REF_energy"] = counts @ ([-13.0, -54.0, -75.0, -2.0] if i % 2 else [1, 2, 3, 4])
    errors = errors_of(structures)
    labels = [s.energy for s in errors.structures]
    assert errors.composition_energies() == pytest.approx(labels, abs=1e-8)
    rows = {row.name: row for row in errors.by("head")}
    assert rows.keys() == {"pbe", "r2scan"}
    assert rows["pbe"].n_structures == len(structures) // 2
    own = [i for i, s in enumerate(errors.structures) if s.head == "pbe"]
    assert rows["pbe"].energy_rmse == pytest.approx(np.sqrt(np.mean(errors.energy[own] ** 2)))


def test_many_sizes_are_grouped():
    random = np.random.default_rng(0)
    chains = [Atoms(f"H{n}", random.uniform(0, 9, (n, 3))) for n in range(2, 40)]
    for atoms in chains:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = 0.0, np.zeros((len(atoms), 3))
    rows = errors_of(chains).by_size()
    assert len(rows) == 8
    assert [row.n_structures for row in rows] == pytest.approx([38 / 8] * 8, abs=1)
    assert rows[0].name == "2 to 6"


def test_the_worst_structures_come_first():
    errors = errors_of(emt_structures(10, 4))
    worst = errors.worst(errors.forces_rmse, 5)
    each = [
        np.sqrt(np.mean((errors.predicted[i].forces - s.forces) ** 2))
        for i, s in enumerate(errors.structures)
    ]
    assert [one.id for one in worst] == np.argsort(each)[::-1][:5].tolist()
    assert worst[0].forces_rmse == pytest.approx(max(each))
    assert worst[0].source == f"file, {worst[0].id}"


def test_names_in_figures_are_no_formulas(monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 40)
    structures = emt_structures(6, 4)
    for i, atoms in enumerate(structures):
        atoms.info["config_type"] = (r"$\frac{", "_a", "[2J$")[i % 3]
    assert plots.distribution(errors_of(structures), "")


def test_an_evaluation_is_shown_as_it_was_written(trained, xyz, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 40)
    frames = read(xyz, ":6")
    frames[4].info["config_type"] = "<b>&"
    write(tmp_path / "test.xyz", frames, format="extxyz")
    done, output = tmp_path / "done", tmp_path / "out"
    given = [f"test_file={tmp_path / 'test.xyz'}", "cluster=cpu"]
    run_command("evaluate", f"checkpoint={trained}", *given, f"output={done}", "plots=false")
    run_command("report", trained, f"evaluation={done}", f"output={output}")
    html = (output / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    page = Page(html)
    table = json.loads((done / "errors.json").read_text())["errors"]
    row = next(row for row in page.rows if row and row[0] == "all")
    headings = next(row for row in page.rows if "Force RMSEmeV/Å" in row)
    shown = float(row[headings.index("Force RMSEmeV/Å")].replace(",", ""))
    assert shown == pytest.approx(1000 * table[0]["forces_rmse_eV_per_A"], rel=6e-3)
    assert re.search(r"test\.xyz\S*, structure \d", page.text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("99999999999999999999\n\n", "more than any file holds"),
        (
            "1\nMACE_energy=1.0\nH 0 0 0\n",
            "structure 0: no prediction that can be read ('MACE_f",
        ),
        (
            "1\nProperties=species:S:1:pos:R:3:MACE_forces:R:3 MACE_energy=x\nH 0 0 0 0 0 0\n",
            "structure 0: no prediction that can be read (could not convert",
        ),
    ],
)
def test_predictions_that_are_none_are_refused(trained, tmp_path, capsys, content, message):
    (tmp_path / "predictions.extxyz").write_text(content)
    with pytest.raises(SystemExit) as ended:
        run_command("report", trained, f"evaluation={tmp_path}", f"output={tmp_path / 'r'}")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/none"], "no such folder"),
        (["{tmp}"], "no metrics.jsonl"),
        (["{run}", "evaluation={tmp}"], "no predictions.extxyz"),
        (["{run}", "split=test"], "has no test/"),
        (["{run}", "test_file=a.xyz", "data_dir=b"], "not both"),
        (["{run}", "test_file=missing.xyz"], "no such file"),
    ],
)
def test_what_is_missing_is_said(trained, tmp_path, capsys, words, message):
    places = {"tmp": tmp_path, "run": trained}
    with pytest.raises(SystemExit) as ended:
        run_command(
            "report", *(word.format(**places) for word in words), f"output={tmp_path / 'r'}"
        )
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
