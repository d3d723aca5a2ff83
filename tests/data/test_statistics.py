"""statistics: merged over any shards equal to one pass, to plain numpy, and to mace-torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.e0s import fit_E0s, triangle_of
from mace_train.data.shards.shard_set import ShardSet, sample_of
from mace_train.data.statistics import (
    Moments,
    Statistics,
    StatisticsSums,
    compositions,
    open_split,
    statistics_of,
    sums_of_shard,
)
from mace_train.errors import InputError
from tests.data.factories import random_structure
from tests.data.shards.samples import write_shards

E0S = {1: -13.5, 6: -1026.25, 8: -2037.75}
HEADS = {"Default": E0S}
GIVEN = {"Default": (E0S, "given")}
R_MAX = 2.5


def samples_of(n, seed):
    rng = np.random.default_rng(seed)
    return [sample_of(random_structure(rng), R_MAX) for _ in range(n)]


def one_pass(samples) -> dict[str, float]:
    """The definitions, structure by structure."""
    per_atom, squares, counts = [], [], []
    for sample in samples:
        structure = sample.structure
        baseline = math.fsum(E0S[z] for z in structure.numbers.tolist())
        per_atom.append((structure.energy - baseline) / structure.n_atoms)
        if structure.forces is not None:
            squares.extend((structure.forces**2).ravel().tolist())
        of_atom = np.bincount(sample.edges.receivers, minlength=structure.n_atoms)
        counts.extend(of_atom[of_atom > 0].tolist())
    return {
        "mean": np.mean(per_atom),
        "std": np.std(per_atom, ddof=1) if len(per_atom) > 1 else 0.0,
        "rms": math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0,
        "neighbors": np.mean(counts) if counts else 0.0,
    }


@given(
    n=st.integers(1, 30),
    per_shard=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=25)
def test_any_shards_in_any_order_equal_one_pass(tmp_path_factory, n, per_shard, seed, order):
    samples = samples_of(n, seed)
    shards = write_shards(tmp_path_factory.mktemp("shards"), samples, per_shard, R_MAX)
    parts = [sums_of_shard(shards.arrays(k), HEADS)["Default"] for k in range(shards.n_shards)]
    order.shuffle(parts)
    half = len(parts) // 2
    merged = sum(parts[:half], StatisticsSums()) + sum(parts[half:], StatisticsSums())
    expected = one_pass(samples)
    assert merged.energies.mean == pytest.approx(expected["mean"], rel=1e-12)
    assert merged.energies.std == pytest.approx(expected["std"], rel=1e-12, abs=1e-12)
    assert merged.rms_forces == pytest.approx(expected["rms"], rel=1e-12)
    assert merged.avg_num_neighbors == pytest.approx(expected["neighbors"], rel=1e-15)
    assert merged.n_structures == n
    assert merged.n_atoms == sum(s.structure.n_atoms for s in samples)
    assert merged.n_edges == sum(s.edges.n_edges for s in samples)
    numbers = np.concatenate([s.structure.numbers for s in samples])
    assert merged.element_counts == {z: int((numbers == z).sum()) for z in set(numbers.tolist())}


def test_moments_keep_their_digits_far_from_zero():
    values = 1e6 + np.random.default_rng(0).normal(scale=1e-3, size=3000)
    merged = Moments()
    for part in np.array_split(values, 17):
        merged += Moments.of(part)
    centred = values - 1e6  # exact
    assert merged.std == pytest.approx(np.std(centred, ddof=1), rel=1e-6)
    assert Moments() + Moments() == Moments()


def mace_loader(samples):
    """mace-torch's batches of the same structures, its own neighbour lists."""
    pytest.importorskip("mace", reason="mace-torch is not installed (extra 'interop')")
    import torch
    from mace import data, tools
    from mace.tools import torch_geometric

    torch.set_default_dtype(torch.float64)
    table = tools.AtomicNumberTable(sorted(E0S))
    items = []
    for sample in samples:
        s = sample.structure
        config = data.Configuration(
            atomic_numbers=s.numbers,
            positions=s.positions,
            properties={"energy": s.energy, "forces": s.forces},
            property_weights={"energy": 1.0, "forces": 1.0},
            cell=s.cell,
            pbc=tuple(s.pbc.tolist()),
        )
        items.append(data.AtomicData.from_config(config, z_table=table, cutoff=R_MAX))
    return torch_geometric.dataloader.DataLoader(items, batch_size=7, shuffle=False)


@pytest.fixture
def float32_afterwards():
    import torch

    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float32_afterwards")
@pytest.mark.filterwarnings("ignore")
def test_equal_to_mace_torch(tmp_path):
    rng = np.random.default_rng(5)
    structures = [random_structure(rng) for _ in range(40)]
    structures = [s for s in structures if s.forces is not None]  # it takes missing ones as zero
    samples = [sample_of(s, R_MAX) for s in structures]
    loader = mace_loader(samples)
    from mace.modules import utils

    shards = write_shards(tmp_path, samples, 6, R_MAX)
    statistics = statistics_of({"train": shards}, GIVEN)
    E0s = np.array([[E0S[z] for z in sorted(E0S)]])
    mean, rms = utils.compute_mean_rms_energy_forces(loader, E0s)
    mean_again, std = utils.compute_mean_std_atomic_inter_energy(loader, E0s)
    neighbors = utils.compute_avg_num_neighbors(loader)
    assert statistics.mean_energy_per_atom == pytest.approx(mean.item(), rel=1e-10)
    assert statistics.mean_energy_per_atom == pytest.approx(mean_again.item(), rel=1e-10)
    assert statistics.rms_forces == pytest.approx(rms.item(), rel=1e-10)
    assert statistics.avg_num_neighbors == pytest.approx(neighbors, rel=1e-10)
    n = len(samples)  # it divides by n - 1 + 1e-6 to avoid a division by zero
    corrected = std.item() * math.sqrt((n - 1 + 1e-6) / (n - 1))
    assert statistics.std_energy_per_atom == pytest.approx(corrected, rel=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_average_E0s_equal_to_mace_torch(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed (extra 'interop')")
    from mace import data, tools

    samples = samples_of(30, 7)
    shards = write_shards(tmp_path, samples, 4, R_MAX)
    configs = [
        data.Configuration(
            atomic_numbers=s.structure.numbers,
            positions=s.structure.positions,
            properties={"energy": s.structure.energy},
            property_weights={},
        )
        for s in samples
    ]
    expected = data.compute_average_E0s(configs, tools.AtomicNumberTable(sorted(E0S)))
    parts = [compositions(shards.arrays(k), [1, 6, 8]) for k in range(shards.n_shards)]
    fitted = fit_E0s([triangle_of(*part) for part in parts], len(samples), [1, 6, 8])
    assert fitted == pytest.approx(expected, rel=1e-10)


@pytest.fixture
def prepared_folder(tmp_path):
    """A folder with train/, valid/ and statistics.json."""
    splits = {
        "train": write_shards(tmp_path / "train", samples_of(12, 0), 5, R_MAX),
        "valid": write_shards(tmp_path / "valid", samples_of(3, 1), 5, R_MAX),
    }
    statistics_of(splits, GIVEN).write(tmp_path / "statistics.json")
    return tmp_path


def test_file_round_trip(prepared_folder):
    statistics = Statistics.read(prepared_folder / "statistics.json")
    splits = {name: ShardSet(prepared_folder / name) for name in ("train", "valid")}
    assert statistics == statistics_of(splits, GIVEN)
    assert statistics.dataset_hash == splits["train"].dataset_hash
    assert statistics.atomic_numbers == [1, 6, 8]
    assert statistics.E0s == E0S
    assert statistics.r_max == R_MAX


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda _: "[]", "not a mapping"),
        (lambda _: "{}", "another file"),
        (lambda text: text.replace('"format_version": 2', '"format_version": 7'), "version 7"),
        (lambda text: text.replace('"rms_forces"', '"force_rms"'), "force_rms"),
        (lambda text: text.replace('"E0s"', '"E1s"'), "E0s"),
    ],
)
def test_files_that_are_not_statistics(prepared_folder, change, message):
    path = prepared_folder / "statistics.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        Statistics.read(path)
    assert str(path) in str(error.value)


def test_no_statistics(tmp_path):
    with pytest.raises(InputError, match="written by `mace-train preprocess`"):
        Statistics.read(tmp_path / "statistics.json")


def test_open_split(prepared_folder):
    assert len(open_split(prepared_folder, "valid")) == 3
    with pytest.raises(InputError, match="has no test/; it holds train, valid"):
        open_split(prepared_folder, "test")
    (prepared_folder / "train" / "shard-00002.h5").unlink()  # the last one leaves no gap
    with pytest.raises(InputError, match=r"holds 10 structures .* statistics\.json says 12"):
        open_split(prepared_folder, "train")


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("energy", 1e300, r"^far.xyz, structure 7: the energy is 1e\+300, .*eV"),
        ("forces", np.full((2, 3), -1e200), r"^far.xyz, structure 7: a force .* is -1e\+200 at"),
        ("stress", np.full((3, 3), np.nan), r"^far.xyz, structure 7: the stress is not finite"),
    ],
)
def test_labels_that_would_overflow_are_named(tmp_path, label, value, message):
    """Shards of earlier versions, or of other tools, may hold them."""
    samples = samples_of(9, 0)
    numbers = np.array([1, 8])
    far = {"numbers": numbers, "positions": np.array([[0.0, 0, 0], [0, 0, 1.0]]), label: value}
    far = {"energy": -1.0, "forces": None, "stress": None, **far}
    far |= {"source": "far.xyz, structure 7", "pbc": np.full(3, True), "cell": np.eye(3) * 9}
    samples.append(sample_of(random_structure(np.random.default_rng(1), **far), R_MAX))
    shards = write_shards(tmp_path, samples)
    with pytest.raises(InputError, match=message):
        statistics_of({"train": shards}, GIVEN)


@pytest.mark.parametrize("least", [0.0, 1e-32])  # single precision loses smaller ones
@pytest.mark.parametrize("name", ["weight", "energy_weight", "forces_weight"])
def test_labels_of_weight_0_have_no_part(tmp_path, name, least):
    """Placeholders of 0 do not move E0s, mean, std and RMS; all geometries count."""
    rng = np.random.default_rng(3)
    kept = [random_structure(rng) for _ in range(12)]
    left_out = [random_structure(rng, energy=0.0, **{name: least}) for _ in range(5)]
    samples = [sample_of(s, R_MAX) for s in [*kept, *left_out]]
    shards = write_shards(tmp_path / "all", samples, 4, R_MAX)
    alone = write_shards(tmp_path / "kept", samples[:12], 4, R_MAX)
    found, expected = (
        sum(
            (sums_of_shard(s.arrays(k), HEADS)["Default"] for k in range(s.n_shards)),
            StatisticsSums(),
        )
        for s in (shards, alone)
    )
    assert found.n_structures == 17
    if name != "forces_weight":
        assert found.energies == expected.energies
        counts = sum(
            len(compositions(shards.arrays(k), [1, 6, 8])[1]) for k in range(shards.n_shards)
        )
        assert counts == 12
    if name != "energy_weight":
        assert found.rms_forces == pytest.approx(expected.rms_forces, rel=1e-14)
        assert found.n_force_components == expected.n_force_components
