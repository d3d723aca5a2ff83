"""The scale of a new model; one rank of a host compiles, the others wait for it."""

import logging
import re

import pytest

from mace_train.data.statistics import HeadStatistics
from mace_train.distributed.world import World
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings
from mace_train.settings.model import ATTENTION, NONLINEAR
from mace_train.train import build_model


def model() -> MACE:
    settings = ModelSettings(num_channels=4, max_L=0, max_ell=1, correlation=2, radial_MLP=[8])
    return MACE(settings, ModelData(4.0, (1, 8), 5.0, (Head((0.0, 0.0), 1.0, 0.0),)))


class Rank(World):
    """A rank that notes when it waits for the others."""

    def barrier(self) -> None:
        EVENTS.append("barrier")


EVENTS: list[str] = []


@pytest.mark.parametrize("local_rank", [0, 1])
def test_local_rank_0_compiles_and_the_others_wait(local_rank, monkeypatch):
    EVENTS.clear()
    monkeypatch.setattr(build_model, "compile_kernels", lambda *_, **__: EVENTS.append("compile"))
    rank = Rank(rank=3, local_rank=local_rank, size=4, local_size=2)
    build_model.compile_kernels_on_all_ranks(model(), rank)
    expected = ["compile", "barrier"] if local_rank == 0 else ["barrier", "compile"]
    assert expected == EVENTS


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({}, False),
        ({"interaction": NONLINEAR}, True),
        ({"interaction_first": ATTENTION}, True),
        ({"interaction": NONLINEAR, "apply_cutoff": False}, False),
    ],
)
def test_jumps_at_the_cutoff_are_said(settings, warns, caplog):
    build_model._warn_of_steps(ModelSettings(**settings))
    assert ("model.apply_cutoff=false is smooth" in caplog.text) == warns


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, False),
        ({"edge_irreps": "8x0e+8x1o"}, False),
        ({"edge_irreps": "16x0e"}, False),
        ({"edge_irreps": "32x0e"}, True),
        ({"edge_irreps": "32x0e", "num_interactions": 1}, False),  # which is not sent
        (
            {"edge_irreps": "32x0e", "num_interactions": 1, "use_edge_irreps_first": True},
            True,
        ),
    ],
)
def test_edges_wider_than_nodes_are_said(settings, said, caplog):
    build_model._warn_of_wide_edges(ModelSettings(num_channels=16, max_L=1, **settings))
    assert ("messages of 32 channels, made of 16 of the nodes" in caplog.text) == said


@pytest.mark.parametrize(
    ("scaling", "rms", "std", "scale", "words"),
    [
        ("rms_forces_scaling", 2.0, 0.5, 2.0, None),
        ("std_scaling", 2.0, 0.5, 0.5, None),
        ("rms_forces_scaling", 0.0, 0.5, 0.5, "RMS of the forces .* standard deviation .* 0.5 eV"),
        ("rms_forces_scaling", 1e-16, 0.5, 0.5, "is 1e-16 eV/Å"),  # a perfect crystal
        ("rms_forces_scaling", 0.0, 1e-17, 1.0, "scaled by 1 eV"),
        ("std_scaling", 2.0, 0.0, 2.0, "standard deviation .* is 0 eV, .* the forces, 2 eV/Å"),
        ("std_scaling", 0.0, 0.0, 1.0, "scaled by 1 eV"),
        ("no_scaling", 0.0, 0.0, 1.0, None),
    ],
)
def test_scale_where_labels_are_missing_or_equal(scaling, rms, std, scale, words, caplog):
    caplog.set_level(logging.INFO)
    statistics = HeadStatistics(5, {1: 0.0}, "given", 0.25, std, rms)
    found = build_model._scale_shift(ModelSettings(scaling=scaling), statistics)
    assert found == (scale, 0.0 if scaling == "no_scaling" else 0.25)
    assert bool(caplog.text) == (words is not None)
    assert words is None or re.search(words, caplog.text)
