"""Initial weights are drawn as mace-torch draws them: every parameter, over many seeds."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from mace_train.interop.header import header_of
from mace_train.interop.state_dict import from_mace_torch
from mace_train.model.mace import MACE
from tests.model.mace_torch import mace_torch_model

pytestmark = pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot

NUMBERS = (1, 6, 8)
N_SEEDS = 12
LIMIT = 5.0  # standard deviations; one parameter in two million is above it by chance
KINDS = {
    "default": {},
    "agnostic": {"flavour": "MACE", "max_ell": 2, "correlation": 2},
    "density": {
        "first": "RealAgnosticDensity",
        "interaction": "RealAgnosticDensityResidual",
        "max_ell": 2,
        "correlation": 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_the_same_distribution(kind, mace_here):
    drawn = [mace_torch_model(NUMBERS, seed=seed, **KINDS[kind]) for seed in range(N_SEEDS)]
    like = from_mace_torch(drawn[0].state_dict(), header_of(drawn[0]))
    theirs = [dict(model.named_parameters()) for model in drawn]
    ours = [_new(like, seed) for seed in range(N_SEEDS)]
    names = set(ours[0])
    assert names == {name for name, value in theirs[0].items() if value.numel()}
    for name in names:
        one, other = (
            torch.stack([of_seed[name].detach().double().flatten() for of_seed in of_all]).numpy()
            for of_all in (ours, theirs)
        )
        assert one.shape == other.shape, name
        _assert_same_distribution(one.ravel(), other.ravel(), name)


def _new(like: MACE, seed: int) -> dict[str, torch.Tensor]:
    """The parameters of a new model of ours."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(MACE(like.settings, like.data).named_parameters())


def _assert_same_distribution(one: np.ndarray, other: np.ndarray, name: str) -> None:
    """Samples [n] of equal mean, standard deviation and shape."""
    n = len(one)
    deviation = np.sqrt((one.var() + other.var()) / n)
    assert abs(one.mean() - other.mean()) < LIMIT * deviation, name
    # the logarithm of a normal sample's variance has the variance 2 / n
    assert abs(np.log(one.var() / other.var())) < LIMIT * np.sqrt(4 / n), name
    assert ks_2samp(one, other).pvalue > 1e-6, name


def test_another_width_of_the_distribution_is_found():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 500))
    _assert_same_distribution(one, other, "the same")
    with pytest.raises(AssertionError, match="wider"):
        _assert_same_distribution(one, 1.5 * other, "wider")
    with pytest.raises(AssertionError, match="shifted"):
        _assert_same_distribution(one, other + 0.5, "shifted")
