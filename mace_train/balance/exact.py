"""The optimum of small instances, by constraint programming (CP-SAT of OR-Tools).

The yardstick for packers: among all ways to put structures into n_bins bins within the capacity,
the least possible cost of the most expensive bin. NP-hard: for tens of structures, not millions.
"""

from dataclasses import dataclass

from mace_train.balance.costs import Capacity, Costs


@dataclass(frozen=True)
class Optimum:
    """Costs in units of ``Costs.scaled``; ``found`` is None when no packing is known."""

    found: int | None
    bound: int
    """No packing is below this."""

    @property
    def proven(self) -> bool:
        """The packing found is an optimum."""
        return self.found == self.bound


def smallest_largest_bin(
    costs: Costs, capacity: Capacity, n_bins: int, seconds: float, hint: int | None = None
) -> Optimum:
    """The least cost of the most expensive bin, or its bounds after ``seconds`` of search.

    ``hint`` is the largest cost of a packing that is known, above which nothing is searched.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    n = len(costs)
    weights = costs.scaled.tolist()
    in_bin = [[model.new_bool_var(f"{i} in {k}") for k in range(n_bins)] for i in range(n)]
    for bins_of_structure in in_bin:
        model.add_exactly_one(bins_of_structure)
    for sizes, limit in zip(costs.dimensions, capacity.limits.tolist(), strict=True):
        for k in range(n_bins):
            model.add(sum(int(sizes[i]) * in_bin[i][k] for i in range(n)) <= limit)
    least = max(-(-sum(weights) // n_bins), max(weights))
    most = sum(weights) if hint is None else hint
    largest = model.new_int_var(least, most, "largest")
    for k in range(n_bins):
        model.add(sum(weights[i] * in_bin[i][k] for i in range(n)) <= largest)
    by_size = sorted(range(n), key=lambda i: -weights[i])
    for first, i in enumerate(by_size[: n_bins - 1]):  # bins are alike: break the symmetry
        for k in range(first + 1, n_bins):
            model.add(in_bin[i][k] == 0)
    model.minimize(largest)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = seconds  # the same on a busy machine
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.catch_sigint_signal = False  # it would only end the search, and no later one
    status = solver.solve(model)
    found = None
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found = round(solver.objective_value)
    return Optimum(found, max(least, round(solver.best_objective_bound)))
