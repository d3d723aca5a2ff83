"""Farthest-point sampling as it is defined, from all distances."""

import numpy as np


def brute_force(points, n, first):
    """Chosen rows and their distances, from the matrix of all distances in float64."""
    every = np.linalg.norm(points[:, None].astype(float) - points[None].astype(float), axis=2)
    chosen, distances = [first], [np.inf]
    while len(chosen) < n:
        nearest = every[:, chosen].min(axis=1)
        chosen.append(int(np.argmax(nearest)))
        distances.append(nearest.max())
    return chosen, distances
