"""The same shards, byte for byte, from MPI ranks, from worker processes and from one process."""

from pathlib import Path

from tests.conftest import run_command
from tests.data.factories import atoms_of_molecules, files_below, molecules, write_xyz
from tests.distributed.tasks.ranks import mpiexec


def test_1_2_and_4_ranks_and_workers(tmp_path: Path) -> None:
    structures = [*molecules(60), *atoms_of_molecules()]
    write_xyz(tmp_path / "a.xyz", structures)
    write_xyz(tmp_path / "b.xyz", molecules(7))

    def command(name: str) -> list[str]:
        files = f"data.train_file=[{tmp_path}/a.xyz,{tmp_path}/b.xyz]"
        return ["preprocess", files, f"output={tmp_path / name}", "structures_per_shard=9"]

    run_command(*command("alone"))
    run_command(*command("workers"), "workers=2")
    expected = files_below(tmp_path / "alone")
    assert files_below(tmp_path / "workers") == expected
    assert "statistics.json" in expected
    for n_ranks in (2, 4):
        done = mpiexec(n_ranks, "-m", "mace_train", *command(f"ranks{n_ranks}"))
        assert done.returncode == 0, done.stderr
        assert files_below(tmp_path / f"ranks{n_ranks}") == expected
    failing = mpiexec(2, "-m", "mace_train", *command("ranks2"))  # is there already
    assert failing.returncode == 2
    assert failing.stderr.count("mace-train: error: output=") == 1
