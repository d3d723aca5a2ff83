"""Sampling ratios: every structure as often as its head says, in every epoch and over many."""

import json
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import cycle, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mace_train.balance.batch_sampler import BalancedBatchSampler
from mace_train.balance.counter_rng import Stream, shuffled
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.head_sampling import Heads, HeadSampling
from mace_train.balance.packers import PACKERS
from mace_train.balance.sampler import BinSampler
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings
from tests.balance.sizes import paper_like

few = settings(deadline=None, max_examples=60)
RATIOS = st.builds(Fraction, st.integers(1, 12), st.integers(1, 7))


def heads_of_sizes(sizes: list[int], seed: int = 0) -> Heads:
    """Heads a, b, ... of so many structures each, in random order."""
    index_of = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(index_of)
    return Heads([chr(97 + i) for i in range(len(sizes))], index_of)


@st.composite
def samplings(draw: st.DrawFn) -> HeadSampling:
    """Heads of a few structures, at least one of which comes in every epoch."""
    sizes = [*draw(st.lists(st.integers(0, 15), min_size=1, max_size=4)), draw(st.integers(1, 15))]
    ratios = [draw(RATIOS) for _ in sizes[1:]] + [Fraction(draw(st.integers(1, 5)))]
    seed = draw(st.integers(0, 2**32))
    return HeadSampling(heads_of_sizes(sizes, seed), tuple(ratios), seed)


@given(samplings(), st.integers(0, 30))
@few
def test_samples_are_those_of_a_repeated_order_taken_one_by_one(sampling, epoch):
    """The slow truth: the structures of a head in their order, again and again."""
    expected: Counter[int] = Counter()
    for head, k in enumerate(sampling.ratios):
        ids = np.flatnonzero(sampling.heads.index_of == head)
        first = epoch // k.denominator * k.denominator  # where the order is new
        order = shuffled(len(ids), sampling.seed, epoch // k.denominator, Stream.HEADS, head)
        taken = 0
        numbers = cycle(ids[order].tolist())
        for e in range(first, epoch + 1):
            due = int((e + 1 - first) * k * len(ids)) - taken
            of_epoch = list(islice(numbers, due))
            taken += due
            if e == epoch:
                expected.update(of_epoch)
    found = sampling.samples(epoch)
    assert found.structure_of.tolist() == sorted(expected.elements())
    assert len(found) == sum(sampling.n_samples(epoch))


@given(samplings(), st.integers(0, 3))
@few
def test_how_often_a_structure_comes_in_one_epoch_and_in_many(sampling, period):
    for head, k in enumerate(sampling.ratios):
        mine = sampling.heads.index_of == head
        epochs = range(period * k.denominator, (period + 1) * k.denominator)
        counts = np.array([sampling.counts(epoch)[mine] for epoch in epochs])
        assert ((counts == k.numerator // k.denominator) | (counts == -(-k // 1))).all()
        assert (counts.sum(axis=0) == k.numerator).all()
        mean = k * int(mine.sum())
        assert all(abs(int(n) - mean) < 1 for n in counts.sum(axis=1))
    low, high = sampling.bounds
    assert low <= len(sampling.samples(period)) <= high


def test_a_third_is_another_third_in_each_epoch_and_then_in_another_order():
    sampling = HeadSampling(heads_of_sizes([300]), (Fraction(1, 3),), 5)
    thirds = [set(sampling.samples(epoch).structure_of.tolist()) for epoch in range(6)]
    assert [len(third) for third in thirds] == [100] * 6
    assert set.union(*thirds[:3]) == set.union(*thirds[3:]) == set(range(300))
    assert thirds[0] != thirds[3]
    assert thirds[0] != set(
        HeadSampling(sampling.heads, sampling.ratios, 6).samples(0).structure_of
    )


def test_what_no_order_gives_is_noticed():
    sampling = HeadSampling(heads_of_sizes([4, 4]), (Fraction(5, 2), Fraction(1)), 0)
    counts = sampling.counts(0)
    sampling.check(counts, 0)
    wrong = counts.copy()
    wrong[np.flatnonzero(sampling.heads.index_of == 0)[:2]] += [1, -1]
    with pytest.raises(AssertionError, match="too often or too rarely"):
        sampling.check(wrong, 0)
    with pytest.raises(AssertionError, match="another number of samples"):
        sampling.check(np.where(sampling.heads.index_of == 0, 3, 1), 0)


COSTS = paper_like(240)
HEADS = heads_of_sizes([20, 160, 60])
GIVEN = {"a": 2.5, "b": "1/3"}


def sampler(world_size: int = 3, rank: int = 1, seed: int = 2, **batching) -> BinSampler:
    batching = {"batch_size": 4, "head_sampling_ratios": GIVEN, **batching}
    return BinSampler(COSTS, BatchingSettings(**batching), world_size, rank, seed, HEADS)


@pytest.mark.parametrize("packer", sorted(PACKERS))
@pytest.mark.parametrize("world_size", [1, 3])
def test_all_ranks_together_take_the_samples_of_every_epoch(packer, world_size):
    ranks = [sampler(world_size, rank, packer=packer) for rank in range(world_size)]
    seen = np.zeros(len(COSTS), np.int64)
    for epoch in range(6):
        plans = [EpochPlan.full(of_rank, epoch) for of_rank in ranks]
        assert len({plan.plan.fingerprint for plan in plans}) == 1
        of_ranks = [list(plan.bins(rank)) for rank, plan in enumerate(plans)]
        assert len({len(bins) for bins in of_ranks}) == 1
        ids = np.concatenate([ids for bins in of_ranks for ids in bins])
        assert ids.dtype == np.int64
        assert np.sort(ids).tolist() == plans[0].samples.structure_of.tolist()
        seen += np.bincount(ids, minlength=len(COSTS))
        expected = [ids.tolist() for bins in of_ranks[:1] for ids in bins]
        assert [ids.tolist() for ids in ranks[0].bins(epoch)] == expected
        if packer != "fixed_count":
            assert plans[0].plan.n_over(ranks[0].capacity) == 0
    for head, of_six in enumerate((15, 2, 6)):
        assert (seen[HEADS.index_of == head] == of_six).all()


@pytest.mark.parametrize("packer", ["balanced", "fixed_count"])
def test_the_rest_of_an_epoch_on_other_ranks_has_what_was_not_taken(packer):
    whole = EpochPlan.full(sampler(2, packer=packer), 1)
    taken = [list(whole.bins(rank))[:5] for rank in range(2)]
    rest = whole.rest(sampler(3, packer=packer), 5)
    assert rest.time(0) == pytest.approx(2 - len(rest.plan.costs) / len(whole.samples))
    taken += [list(rest.bins(rank))[:2] for rank in range(3)]
    last = rest.rest(sampler(1, 0, packer=packer), 2)
    taken += [list(last.bins(0))]
    ids = np.concatenate([ids for bins in taken for ids in bins])
    assert np.sort(ids).tolist() == whole.samples.structure_of.tolist()


def test_a_restart_at_any_step_is_the_tail_of_the_uninterrupted_run():
    def steps(of: BinSampler, n: int) -> list[list[int]]:
        found: list[list[int]] = []
        while len(found) < n:
            for ids in of:
                found.append(ids.tolist())
                of.advance()
                if len(found) == n:
                    break
        return found

    whole = steps(sampler(), 60)
    n_steps = sampler().plan(0).n_steps
    assert n_steps < 30
    for stop in (0, 1, n_steps, n_steps + 3, 50):
        first, second = sampler(), sampler()
        head = steps(first, stop)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert head + steps(second, 60 - stop) == whole
    other = sampler(head_sampling_ratios={"a": 2})
    with pytest.raises(InputError, match=r"head_sampling_ratios=.*'a': '2'.*'a': '5/2'"):
        other.load_state_dict(first.state_dict())


def test_ratios_of_one_change_nothing():
    plain = BinSampler(COSTS, BatchingSettings(batch_size=4), 3, 1, 2)
    for ones in ({"a": 1}, {"a": 1.0, "c": "7/7"}, {}):
        same = sampler(head_sampling_ratios=ones)
        assert same.origin() == plain.origin()
        assert "head_sampling_ratios" not in same.origin()
        assert same.plan(3).fingerprint == plain.plan(3).fingerprint


def test_the_capacity_follows_what_an_epoch_holds_on_average():
    whole = sampler(head_sampling_ratios={"a": 3, "b": 3, "c": 3})
    assert whole.capacity == sampler(head_sampling_ratios=None).capacity
    small = np.flatnonzero(HEADS.index_of == 0)
    mostly_a = sampler(batch_size=40, head_sampling_ratios={"a": 10_000}).capacity
    only_a = BinSampler(COSTS.subset(small), BatchingSettings(batch_size=40), 3, 1, 2).capacity
    assert mostly_a.max_atoms == pytest.approx(only_a.max_atoms, rel=0.01)


def test_batches_of_a_data_loader():
    names = np.array(HEADS.names)[HEADS.index_of]
    seen: Counter[int] = Counter()
    for rank in range(2):
        batches = BalancedBatchSampler(
            COSTS.n_atoms, COSTS.n_edges, world_size=2, rank=rank, batch_size=5,
            heads=names, head_sampling_ratios={"a": 3, "b": 0.5},
        )  # fmt: skip
        for epoch in range(2):
            batches.set_epoch(epoch)
            loader = DataLoader(range(240), batch_sampler=batches)
            assert len(list(loader)) == len(batches)
            seen.update(i for batch in loader for i in batch.tolist())
    assert {(names[i], count) for i, count in seen.items()} == {("a", 6), ("b", 1), ("c", 2)}
    assert len(seen) == 240


def test_memory_is_that_of_a_few_numbers_per_structure():
    n = 1_000_000
    index_of = np.zeros(n, np.int64)
    index_of[: n // 10] = 1
    sampling = HeadSampling(Heads(("big", "small"), index_of), (Fraction(2, 5), Fraction(4)), 0)
    tracemalloc.start()
    samples = sampling.samples(3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples.structure_of.nbytes == 4 * len(samples)
    assert peak < 60 * n  # a list of integers takes 36 bytes each, beside these


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": 0}, r"head_sampling_ratios\.a=0 is out of range; it must be at least 1e-06 and"),
        ({"a": -1.5}, r"ratios\.a=-1.5 .* at least 1e-06"),
        ({"a": float("nan")}, r"ratios\.a=nan .* at least 1e-06"),
        ({"a": "0/3"}, r"ratios\.a=0 is out of range"),
        ({"a": 20_000}, r"at most 10000 \(to leave a head out, leave it out of the data"),
        ({"a": "1/0"}, r"ratios\.a='1/0' must be a number, or a fraction such as 1/3"),
        ({"a": "often"}, r"must be a number, or a fraction such as 1/3; it must be at least 1e-06"),
        ({"a": True}, "is not a number"),
        ({"a": None}, "ratios.a=None must be a number"),
        ([2, 3], r"=\[2, 3\] must map heads to numbers, such as '\{new: 4, old: 1/3\}'"),
        ({"d": 2}, r"ratios\.d: no head 'd'; the heads of the data are: a, b, c"),
        (dict.fromkeys("abc", 0.001), "an epoch would hold no structure; it must hold at"),
    ],
)
def test_ratios_that_cannot_be(given, words):
    with pytest.raises(InputError, match=words):
        sampler(head_sampling_ratios=given)


def test_too_many_samples_and_no_heads():
    heads = Heads(("a",), np.zeros(1_000_000, np.int64))
    with pytest.raises(InputError, match=r"would hold 10,000,000,000 structures; .* 2,147,483,647"):
        HeadSampling(heads, (Fraction(10_000),), 0)
    with pytest.raises(InputError, match="the heads of the structures are not given"):
        BalancedBatchSampler([3], [6], world_size=1, rank=0, head_sampling_ratios={"a": 2})
    with pytest.raises(InputError, match="heads has 1 names for 2 structures"):
        BalancedBatchSampler([3, 3], [6, 6], world_size=1, rank=0, heads=["a"])
    with pytest.raises(InputError, match="2 structures on 3 ranks"):
        BalancedBatchSampler(
            [3] * 4, [6] * 4, world_size=3, rank=0,
            heads=["a"] * 4, head_sampling_ratios={"a": 0.5},
        )  # fmt: skip
