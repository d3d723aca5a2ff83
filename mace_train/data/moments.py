"""Mean and standard deviation of numbers that come in parts, see statistics.py."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Count, mean, and sum of squared deviations from the mean."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """The moments of ``values`` [n]."""
        if len(values) == 0:
            return cls()
        mean = math.fsum(values) / len(values)
        return cls(len(values), mean, math.fsum((values - mean) ** 2))

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of values."""
        count = self.count + other.count
        if 0 in (self.count, other.count):
            return self if other.count == 0 else other
        step = other.mean - self.mean
        mean = (self.count * self.mean + other.count * other.mean) / count
        shared = step * step * self.count * other.count / count
        return Moments(count, mean, self.deviations + other.deviations + shared)

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 0 for fewer than two values."""
        return math.sqrt(self.deviations / max(self.count - 1, 1))
