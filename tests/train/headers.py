"""Headers of checkpoints, of which only the progress matters."""


def header(step: int, epoch: int = 0, best_step: int = 0, part_step: int = 0) -> dict[str, object]:
    """The header of a checkpoint after ``step``."""
    progress = {"step": step, "epoch": epoch, "best_step": best_step, "part_step": part_step}
    return {"progress": progress}
