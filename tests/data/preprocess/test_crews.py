"""The same shards, byte for byte, from MPI ranks, from worker processes and from one process."""

import os
import subprocess
import sys
from pathlib import Path

from tests.data.factories import atoms_of_molecules, molecules, write_xyz
from tests.data.parallel.test_crew import ROOT, mpiexec
from tests.data.preprocess.test_interrupted import files_below


def test_1_2_and_4_ranks_and_workers(tmp_path: Path) -> None:
    structures = [*molecules(60), *atoms_of_molecules()]
    write_xyz(tmp_path / "a.xyz", structures)
    write_xyz(tmp_path / "b.xyz", molecules(7))

    def command(name: str) -> list[str]:
        files = f"data.train_file=[{tmp_path}/a.xyz,{tmp_path}/b.xyz]"
        output = f"output={tmp_path / name}"
        return ["-m", "mace_train", "preprocess", files, output, "structures_per_shard=9"]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = [sys.executable, *command("alone"), "workers=1"]
    subprocess.run(alone, check=True, capture_output=True, env=environment)
    workers = [sys.executable, *command("workers"), "workers=3"]
    subprocess.run(workers, check=True, capture_output=True, env=environment)
    expected = files_below(tmp_path / "alone")
    assert files_below(tmp_path / "workers") == expected
    assert "statistics.json" in expected
    for n_ranks in (2, 4):
        done = mpiexec(n_ranks, *command(f"ranks{n_ranks}"))
        assert done.returncode == 0, done.stderr
        assert files_below(tmp_path / f"ranks{n_ranks}") == expected
    failing = mpiexec(2, *command("ranks2"))  # is there already
    assert failing.returncode == 2
    assert failing.stderr.count("mace-train: error: output=") == 1
