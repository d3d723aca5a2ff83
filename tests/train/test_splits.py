"""The labels that a loss counts, and errors where it counts none."""

import numpy as np
import pytest

from mace_train.data.shards.shard_set import sample_of
from mace_train.data.statistics import FILE_NAME, statistics_of
from mace_train.errors import InputError
from mace_train.settings import CheckpointSettings, LossSettings, StageTwoSettings, TrainSettings
from mace_train.train.splits import labels_with_weight, open_splits
from tests.data.factories import random_structure
from tests.data.shards.samples import R_MAX, write_shards

LABELS = {"energy": -1.0, "forces": np.zeros((2, 3)), "stress": np.eye(3)}
TWO = {"numbers": np.array([1, 1]), "positions": np.array([[0.0, 0, 0], [1, 0, 0]])}


def structure(*labels, head="Default", **weights):
    """Two atoms in a box with the labels that are named."""
    given = {name: LABELS[name] if name in labels else None for name in LABELS}
    box = {"cell": np.eye(3) * 9, "pbc": np.full(3, True)}
    given |= {"weight": 1.0, "config_type": "Default", **TWO, **box, **weights}
    return random_structure(np.random.default_rng(0), head=head, **given)


def data(folder, train, valid=None):
    """A preprocessed folder of these structures."""
    splits = {
        name: write_shards(folder / name, [sample_of(s, R_MAX) for s in structures])
        for name, structures in (("train", train), ("valid", valid))
        if structures is not None
    }
    heads = {s.head: ({1: 0.0}, "given") for s in train}
    statistics = statistics_of(splits, heads)
    statistics.write(folder / FILE_NAME)
    return folder, statistics


def opened(given, **settings):
    return open_splits(*given, TrainSettings(**settings))


def test_labels_with_a_weight(tmp_path):
    train, _ = opened(
        data(
            tmp_path,
            [
                structure("energy"),
                structure("forces"),
                structure("energy", "forces", weight=0.0),
                structure("energy", "forces", energy_weight=0.0),
                structure("forces", "energy", forces_weight=1e-200),
                structure("stress", weight=1e-15, stress_weight=1e-14),
                structure("stress", weight=1e-15, stress_weight=1e-18),
            ],
        )
    )
    found = labels_with_weight(LossSettings(stress_weight=10.0), train)
    assert {name: np.flatnonzero(of_term).tolist() for name, of_term in found.items()} == {
        "energy": [0, 4],
        "forces": [1, 3],
        "stress": [5],
    }
    found = labels_with_weight(LossSettings(energy_weight=0, stress_weight=1e-3), train)
    assert not found["stress"].any()
    assert "energy" not in found


STRESS_ALONE = {"energy_weight": 0.0, "forces_weight": 0.0, "stress_weight": 1.0}


@pytest.mark.parametrize(
    ("train", "valid", "settings", "message"),
    [
        ([structure("stress")], None, {}, r"nothing to train on: .*\(energy, forces\)"),
        ([structure("energy", weight=0.0)], None, {}, "nothing to train on: .*config_weight"),
        (
            [structure("energy")],
            [structure("energy", weight=0.0), structure("stress")],
            {},
            "nothing to validate on: .*every epoch would be 0.*data.valid_fraction=0",
        ),
        (
            [structure("energy", "stress")],
            [structure("energy")],
            {
                "loss": LossSettings(stress_weight=1.0),
                "stage_two": StageTwoSettings(enabled=True, **STRESS_ALONE),
            },
            r"nothing to validate on in stage two: .*\(stress\)",
        ),
        (
            [structure("energy", head="a"), structure("energy", head="b")],
            [structure("energy", head="a"), structure("energy", head="b", weight=0.0)],
            {"checkpoints": CheckpointSettings(head="b")},
            "nothing to validate on: .*no validation structure of checkpoints.head=b has",
        ),
    ],
)
def test_a_loss_that_counts_nothing_is_an_error(tmp_path, train, valid, settings, message):
    with pytest.raises(InputError, match=message):
        opened(data(tmp_path, train, valid), **settings)


def test_what_is_not_trained_is_said(tmp_path, caplog):
    train = [structure("energy", head="a"), structure("energy", head="b", weight=0.0)]
    opened(data(tmp_path, train, train))
    assert "loss.forces_weight has no effect" in caplog.text
    assert "head b: no training structure has a label with a weight above 0" in caplog.text
    assert "head a:" not in caplog.text
