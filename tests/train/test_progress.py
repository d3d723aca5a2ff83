"""The counters of a run in the header of a checkpoint: files of any version are read."""

from dataclasses import fields

from mace_train.train.run import Progress

OLD_HEADER = {  # as version 0.1.0 wrote it within an epoch, before capacities could fall
    "epoch": 3,
    "step": 61,
    "part_step": 7,
    "stage": 1,
    "best_epoch": 2,
    "best_step": 54,
    "best_loss": 0.25,
    "bad_validations": 1,
    "seconds": 12.5,
    "epoch_seconds": 0.5,
}


def test_an_old_header_is_read():
    progress = Progress.from_header(OLD_HEADER)
    assert progress.plan_step == 7
    for name, value in OLD_HEADER.items():
        assert name == "part_step" or getattr(progress, name) == value
    assert progress.n_out_of_memory == progress.n_starts == 0


def test_a_header_has_the_names_that_older_versions_read():
    progress = Progress(epoch=1, step=5, plan_step=2, best_loss=0.5, n_starts=3)
    header = progress.to_header()
    assert header["part_step"] == 2
    assert OLD_HEADER.keys() <= header.keys()
    assert "plan_step" not in header
    assert len(header) == len(fields(Progress))
    assert Progress.from_header(header) == progress
