"""What a kernel computes, with numpy in float64, from its program and the roles of its operands."""

import numpy as np
import torch

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role
from mace_train.ops.codegen.program import Segment


def expected(kernel: Kernel, index: list[torch.Tensor], inputs: list[torch.Tensor], sizes):
    """Outputs of a kernel; ``sizes`` are the rows of each."""
    arrays = [index_tensor.numpy() for index_tensor in index]
    values = [tensor.double().numpy() for tensor in inputs]
    if kernel.loop is Loop.ROWS:
        order, first, index_of_chunk = arrays
        chunk = np.repeat(np.arange(len(first) - 1), np.diff(first))
        row_of = {Role.ROW: order, Role.CHUNK: chunk, Role.INDEXED: index_of_chunk[chunk]}
    elif kernel.loop is Loop.PAIRS:
        order, first, senders, receivers = arrays
        edges = np.arange(len(senders))
        pairs = np.empty_like(edges)
        pairs[order] = np.repeat(np.arange(len(first) - 1), np.diff(first))
        row_of = {Role.ROW: receivers, Role.SENDER: senders, Role.PAIR: pairs}
        row_of |= {Role.EDGE: edges, Role.UNIFORM: edges}
    else:
        first, senders, pairs = arrays
        receivers = np.repeat(np.arange(len(first) - 1), np.diff(first))
        edges = np.arange(len(senders))
        row_of = {Role.ROW: receivers, Role.SENDER: senders, Role.PAIR: pairs}
        row_of |= {Role.EDGE: edges, Role.UNIFORM: edges}
    n_channels = next(v.shape[2] for v in values if v.ndim == 3)
    n_iterations = len(next(iter(row_of.values())))
    segments = {
        Segment(o.name, i): (v[row_of[o.role], i] if v.ndim == 3 else v[row_of[o.role], i, None])
        for o, v in zip(kernel.inputs, values, strict=True)
        for i in range(o.n_segments)
    }
    found = kernel.program.evaluate(segments)

    def output(operand: Operand, n_rows: int) -> np.ndarray:
        uniform = operand.role is Role.UNIFORM
        # a loop over edges writes those of a pair apart, others sum them
        is_apart = operand.role is Role.PAIR and kernel.loop is Loop.EDGES
        role = Role.EDGE if is_apart else operand.role
        shape = (n_rows, operand.n_segments) + (() if uniform else (n_channels,))
        result = np.zeros(shape)
        for segment, value in found.items():
            if segment.operand == operand.name:
                value = np.broadcast_to(value, (n_iterations, n_channels))
                value = value.sum(1) if uniform else value
                np.add.at(result[:, segment.number], row_of[role], value)
        return result

    return [output(o, n) for o, n in zip(kernel.outputs, sizes, strict=True)]
