"""One rank of a host compiles, the others wait for it."""

import pytest

from mace_train.distributed.world import World
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings
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
