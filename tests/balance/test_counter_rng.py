"""Random numbers: the published generator, uniform permutations."""

from itertools import permutations

import numpy as np

from mace_train.balance.counter_rng import below, bits_at, mix, random_bits, shuffled, start_of


def splitmix64(state: int):
    """The published generator, in Python integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_random_bits_are_splitmix64():
    # first output for the seed 1234567, as published with the generator
    assert mix(1234567) == 6457827717110365317
    start = mix(mix(mix(7) ^ 3) ^ 1)
    reference = splitmix64(start)
    assert random_bits(5, 7, 3, 1).tolist() == [next(reference) for _ in range(5)]
    assert random_bits(3, -1, 0, 1).dtype == np.uint64  # a negative seed is a seed, too


def test_every_permutation_is_equally_likely():
    counts = dict.fromkeys(permutations(range(4)), 0)
    for epoch in range(4800):
        counts[tuple(shuffled(4, 5, epoch, 1).tolist())] += 1
    # 200 each on average, standard deviation 14
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


def test_any_number_of_a_stream_can_be_made_alone():
    start = np.uint64(start_of(5, 2, 3, 7))
    assert [int(bits_at(start, i)) for i in range(4)] == random_bits(4, 5, 2, 3, 7).tolist()
    assert random_bits(4, 5, 2, 3, 8).tolist() != random_bits(4, 5, 2, 3, 7).tolist()


def test_bounded_numbers_are_uniform():
    start = np.uint64(start_of(0, 0, 1))
    drawn = np.bincount([below(np.uint64(bits_at(start, i)), 7) for i in range(7000)], minlength=7)
    assert len(drawn) == 7
    assert abs(drawn - 1000).max() < 120  # four standard deviations
