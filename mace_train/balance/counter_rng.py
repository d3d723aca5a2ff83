"""Random numbers that are the same on every machine and for every version of numpy.

A stream is a counter hash, splitmix64 (Steele, Lea, Flood 2014) with a hashed start: the i-th
number follows from (seed, epoch, stream, i) alone, so any part of a plan can be made without the
others.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mace_train.jit import compiled

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_U_GOLDEN = np.uint64(_GOLDEN)
_U_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_U_SECOND = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31, _U32 = (np.uint64(n) for n in (27, 30, 31, 32))


class Stream(IntEnum):
    """Independent sequences of random numbers."""

    STRUCTURES = 1
    BINS = 2
    WINDOWS = 3
    SIZES = 4
    RANKS = 5
    HEADS = 6


def mix(z: int) -> int:
    """Scalar splitmix64: a bijection of 64-bit integers."""
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def start_of(seed: int, epoch: int, stream: int, part: int = 0) -> int:
    """Where a stream starts: a 64-bit number for ``bits_at``."""
    start = mix(mix(mix(seed & _MASK) ^ (epoch & _MASK)) ^ stream)
    return mix(start ^ part) if part else start


@compiled
def bits_at(start: np.uint64, i: int) -> np.uint64:
    """The i-th number of a stream, uniform 64-bit."""
    z = start + _U_GOLDEN * np.uint64(i + 1)
    z = (z ^ (z >> _U30)) * _U_FIRST
    z = (z ^ (z >> _U27)) * _U_SECOND
    return z ^ (z >> _U31)


@compiled
def below(bits: np.uint64, bound: int) -> int:
    """An integer in [0, bound) from random bits; bound < 2^32, bias below 2^-32 bound."""
    return int(((bits >> _U32) * np.uint64(bound)) >> _U32)


@compiled
def bits_of(start: np.uint64, indices: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Numbers of a stream, [n]."""
    bits = np.empty(len(indices), np.uint64)
    for i in range(len(indices)):
        bits[i] = bits_at(start, indices[i])
    return bits


def random_bits(n: int, seed: int, epoch: int, stream: int, part: int = 0) -> NDArray[np.uint64]:
    """The first n numbers of a stream, [n], uniform 64-bit."""
    return bits_of(np.uint64(start_of(seed, epoch, stream, part)), np.arange(n, dtype=np.int32))


def shuffled(n: int, seed: int, epoch: int, stream: int, part: int = 0) -> NDArray[np.int64]:
    """A random permutation of range(n), [n]."""
    return sorted_by(random_bits(n, seed, epoch, stream, part))


def sorted_by(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices [n] that sort ``keys`` [n] by their high bits, then by index.

    The low bits are replaced by the index, so keys are unique and all sorts give the same answer.
    """
    n_bits = np.uint64(max(1, (len(keys) - 1).bit_length()))
    low = (np.uint64(1) << n_bits) - np.uint64(1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return (packed & low).astype(np.int64)
