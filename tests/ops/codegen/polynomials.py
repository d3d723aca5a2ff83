"""Random polynomials, and random values of their inputs."""

import numpy as np
from hypothesis import strategies as st

from mace_train.ops.codegen.polynomial import Kind, Polynomial
from mace_train.ops.codegen.program import Segment


def random_inputs(segments, shape=(3,), seed=0):
    """Segment -> normal numbers in ``shape``."""
    random = np.random.RandomState(seed)
    return {segment: random.standard_normal(shape) for segment in segments}


@st.composite
def programs(draw):
    """Random polynomials of a few inputs, as programs."""
    polynomial = Polynomial({"x": Kind.ROW, "y": Kind.UNIFORM})
    segments = [Segment("x", i) for i in range(3)] + [Segment("y", i) for i in range(2)]
    for output in range(2):
        for _ in range(draw(st.integers(1, 4))):
            factors = draw(st.lists(st.sampled_from(segments), min_size=1, max_size=4))
            coefficient = draw(st.sampled_from([1.0, -1.0, 2.0, -0.3]))
            polynomial.add(Segment("out", output), coefficient, *factors)
    return polynomial
