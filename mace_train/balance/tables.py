"""The tables that ``mace-train balance`` prints, from what balance.json holds."""

from typing import Any

from rich.table import Table


def all_tables(report: dict[str, Any]) -> list[Table]:
    """Packers, capacities and, where it was predicted, scaling."""
    tables = [packers(report), capacities(report)]
    return [*tables, scaling(report)] if "scaling" in report else tables


def packers(report: dict[str, Any]) -> Table:
    """One column per packer, the selected one marked."""
    cluster = report["cluster"]
    table = Table(
        title=f"{report['structures']} structures of {report['split']} on {report['gpus']} GPUs, "
        "one epoch",
        caption=(
            f"Capacity of one GPU and step: {report['max_atoms']} atoms, {report['max_edges']} "
            "edges. Straggler ratio: time of an epoch over that of a perfect balance, at a cost of "
            f"{report['cost']} per structure; its bound is what the largest structures leave. "
            "Size mix, meet again: 1 for uniformly random batches. *: batching.packer\n"
            f"Predicted for {cluster['model']['source']}; {cluster['fabric']['name']}, "
            f"{cluster['algorithm']}, {cluster['gradient_bytes'] / 1e6:g} MB of gradients; "
            f"{report['assumptions']}\n{_gap(report['optimality_gap'])}"
        ),
    )
    table.add_column("", no_wrap=True)
    columns = []
    for name, numbers in report["packers"].items():
        table.add_column(name + (" *" if name == report["selected"] else ""), justify="right")
        columns.append(_cells(numbers))
    for row in columns[0]:
        table.add_row(row, *(cells[row] for cells in columns))
    return table


def _gap(gap: dict[str, Any] | None) -> str:
    """One line on the distance from the optimum."""
    if gap is None:
        return "Optimality gap: not computed (gap_instances=0, or OR-Tools is not installed)"
    if gap["mean"] is None:
        return "Optimality gap: no small draw of these structures can be packed"
    return (
        f"Optimality gap of balanced on {gap['instances']} small draws (CP-SAT, {gap['n_proven']} "
        f"optima proven): mean {gap['mean']:.2%}, worst {gap['worst']:.2%}"
    )


def _cells(numbers: dict[str, Any]) -> dict[str, str]:
    """The rows of the table for one packer."""
    per_step, epoch = numbers["structures_per_step"], numbers["predicted"]

    def share(part: str) -> str:
        return f"{epoch[part] / epoch['epoch_s']:.1%}"

    return {
        "steps per epoch (bound)": f"{numbers['steps']} ({numbers['least_steps']})",
        "straggler ratio": f"{numbers['straggler']:.4f}",
        "  its bound": f"{numbers['least_straggler']:.4f}",
        "worst step, max / mean": f"{numbers['worst_step_imbalance']:.3f}",
        "mean fill, atoms": f"{numbers['fill_atoms']:.1%}",
        "mean fill, edges": f"{numbers['fill_edges']:.1%}",
        "largest bin, atoms": str(numbers["largest_bin_atoms"]),
        "largest bin, edges": str(numbers["largest_bin_edges"]),
        "bins over capacity": str(numbers["bins_over_capacity"]),
        "structures per step": f"{per_step['min']} / {per_step['mean']:.1f} / {per_step['max']}",
        "size mix, bins / steps": f"{numbers['size_mix_within_bins']:.2f} / "
        f"{numbers['size_mix_between_steps']:.2f}",
        "meet again, bin / step": f"{_ratio(numbers['meet_again_in_a_bin'])} / "
        f"{_ratio(numbers['meet_again_in_a_step'])}",
        "time to plan, s": f"{numbers['plan_s']:.3f}",
        "predicted epoch, s": f"{epoch['epoch_s']:.4g}",
        "  computing": share("compute_s"),
        "  waiting": share("waiting_s"),
        "  communication": share("communication_s"),
    }


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def capacities(report: dict[str, Any]) -> Table:
    """Smaller and larger capacities."""
    table = Table(
        title="The same with another capacity",
        caption="Fewer steps are larger global batches: fewer updates per epoch.",
    )
    for name in ("max_atoms", "max_edges", "steps", "structures per step", "straggler ratio"):
        table.add_column(name, justify="right")
    for name in ("its bound", "predicted epoch, s", "efficiency"):
        table.add_column(name, justify="right")
    for row in report["capacities"]:
        mark = " *" if row["factor"] == 1.0 else ""
        table.add_row(
            f"{row['max_atoms']}{mark}",
            str(row["max_edges"]),
            str(row["steps"]),
            f"{row['structures_per_step']:.1f}",
            f"{row['straggler']:.4f}",
            f"{row['least_straggler']:.4f}",
            f"{row['epoch_s']:.4g}",
            f"{row['efficiency']:.1%}",
        )
    return table


def scaling(report: dict[str, Any]) -> Table:
    """Predicted epoch and efficiency over the number of GPUs."""
    strong, weak = report["scaling"]["strong"], report["scaling"]["weak"]
    table = Table(title="Predicted epoch, s (strong scaling) and efficiency (strong / weak)")
    table.add_column("GPUs", justify="right")
    for packer in strong:
        table.add_column(packer, justify="right")
    for i, point in enumerate(next(iter(weak.values()))):
        cells = []
        for packer in strong:
            late = f"{weak[packer][i]['efficiency']:.0%}"
            if i < len(strong[packer]):
                now = strong[packer][i]
                cells.append(f"{now['epoch_s']:.4g}  {now['efficiency']:.0%} / {late}")
            else:
                cells.append(f"- / {late}")
        table.add_row(str(point["n_ranks"]), *cells)
    return table
