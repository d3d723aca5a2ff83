"""An order of a program's instructions in which few values are alive at a time.

Every term is an instruction that adds to its sum, so a sum may grow while the factors of a term are
in registers. Greedy list scheduling: among the terms whose factors are complete we take the one
after which the fewest values are alive; among equals, one of the sum that was changed last, which
keeps chains together. Dropping an input costs nothing, since it is in memory. Quadratic in the
worst case, about a second for the largest programs of MACE.

Terms that share no intermediate form clusters of their own (the paths of a convolution), which come
one after the other, so that only outputs are alive from one to the next.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from mace_train.ops.codegen.program import Program, Term


@dataclass(frozen=True)
class ScheduledInstruction:
    """Adds a term to a sum; the first one starts it."""

    target: int
    term: Term
    is_first: bool
    is_last: bool


def schedule(program: Program, *, uniform: bool) -> list[ScheduledInstruction]:
    """Instructions of all nodes that are uniform, or of all that are not."""
    return _Scheduler(program, uniform).run()


class _Scheduler:
    """State of the list scheduler."""

    def __init__(self, program: Program, uniform: bool) -> None:
        is_uniform = program.graph.is_uniform
        self.sums = {i: node for i, node in program.sums() if is_uniform[i] == uniform}
        self.terms = [(i, term) for i, node in self.sums.items() for term in node]
        self.remaining = {i: len(node) for i, node in self.sums.items()}
        self.started: dict[int, int] = {}  # sum -> time of its latest term
        self.reads: dict[int, int] = defaultdict(int)  # reads still to come, of each sum
        self.readers: dict[int, list[int]] = defaultdict(list)
        self.missing: list[int] = []  # factors not complete yet, of each term
        self.stored = set(program.outputs.values())
        for number, (_, term) in enumerate(self.terms):
            factors = {i for i in term.factors if i in self.sums}
            self.missing.append(len(factors))
            for factor in factors:
                self.readers[factor].append(number)
                self.reads[factor] += 1
        self.ready = {t for t, missing in enumerate(self.missing) if missing == 0}

    def run(self) -> list[ScheduledInstruction]:
        """All instructions in order."""
        order: list[ScheduledInstruction] = []
        for cluster in self._clusters():
            for _ in range(len(cluster)):
                number = min(self.ready & cluster, key=self._priority)
                self.ready.remove(number)
                order.append(self._issue(number, len(order)))
        return order

    def _clusters(self) -> list[set[int]]:
        """Terms by what they share, so that a cluster has most sums in common with the last."""
        parent = {i: i for i in self.sums}

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        is_read = {target for target in self.sums if self.reads.get(target)}
        shared = [
            [i for i in (target, *term.factors) if i in self.sums and (i != target or i in is_read)]
            for target, term in self.terms
        ]
        for nodes in shared:
            for a, b in pairwise(nodes):
                parent[root(a)] = root(b)
        members: dict[int, set[int]] = defaultdict(set)
        for number, nodes in enumerate(shared):
            members[root(nodes[0]) if nodes else -1].add(number)
        targets = {i: {self.terms[t][0] for t in terms} for i, terms in members.items()}
        waiting, clusters, last = sorted(members), [], set[int]()
        while waiting:
            following = max(waiting, key=lambda i: (len(targets[i] & last), -i))
            waiting.remove(following)
            clusters.append(members[following])
            last = targets[following]
        return clusters

    def _priority(self, number: int) -> tuple[int, int, int, int]:
        target, term = self.terms[number]
        started = self.started.get(target)
        growth = int(started is None)
        for factor in set(term.factors):
            growth -= int(self.reads.get(factor) == 1)
        if self.remaining[target] == 1 and not self.readers[target]:
            growth -= 1  # the result is stored, its register is free
        return growth, -(started if started is not None else -1), self.remaining[target], number

    def _issue(self, number: int, time: int) -> ScheduledInstruction:
        target, term = self.terms[number]
        is_first = target not in self.started
        self.started[target] = time
        self.remaining[target] -= 1
        for factor in set(term.factors):
            if factor in self.sums:
                self.reads[factor] -= 1
        is_last = self.remaining[target] == 0
        if is_last:
            for reader in self.readers[target]:
                self.missing[reader] -= 1
                if self.missing[reader] == 0:
                    self.ready.add(reader)
        return ScheduledInstruction(target, term, is_first, is_last)


def live_values(order: list[ScheduledInstruction]) -> int:
    """The largest number of sums alive at a time (inputs are in memory)."""
    last_read: dict[int, int] = {}
    for time, instruction in enumerate(order):
        last_read[instruction.target] = time
        for factor in instruction.term.factors:
            if factor in last_read:
                last_read[factor] = time
    ends: dict[int, int] = defaultdict(int)
    for time in last_read.values():
        ends[time] += 1
    alive = most = 0
    for time, instruction in enumerate(order):
        alive += int(instruction.is_first)
        most = max(most, alive)
        alive -= ends[time]
    return most
