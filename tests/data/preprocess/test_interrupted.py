"""preprocess: killed at any moment it continues, and what has a name is whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mace_train.data.shards.shard_set import ShardSet
from tests.conftest import run_command
from tests.data.factories import atoms_of_molecules, files_below, molecules, write_xyz
from tests.distributed.tasks.ranks import ROOT, mpiexec

# a process that imports once, and forks children which preprocess and are killed
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from mace_train.data.shards.reader import ShardReader
from mace_train.data.preprocess.preprocess import preprocess
from mace_train.data.shards.hdf5 import checksum, read_header
from mace_train.settings import DataSettings, PreprocessSettings

folder, n_kills = Path(sys.argv[1]), int(sys.argv[2])

def settings(name):
    data = DataSettings(train_file=str(folder / "train.xyz.gz"), valid_fraction=0.2)
    return PreprocessSettings(data=data, output=str(folder / name), structures_per_shard=16)

def start(name):
    pid = os.fork()
    if pid == 0:
        preprocess(settings(name))
        os._exit(0)
    return pid

def parts():
    found = [*folder.glob(".out.partial/blocks/*.h5"), *folder.glob(".out.partial/result/*/*.h5")]
    return {path: path.stat().st_ino for path in found}

def finished():
    return {path.with_suffix("").name for path in folder.glob(".out.partial/blocks/*.json")}

began = time.monotonic()
os.waitpid(start("whole"), 0)
seconds = time.monotonic() - began
random.seed(1)
stages = set()
for kill in range(n_kills):
    before = {path: node for path, node in parts().items()
              if path.parent.name != "blocks" or path.name[:-5] in finished()}
    child = start("out")
    time.sleep(random.uniform(0, 0.6 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (folder / "out").exists():
        stages.add("done")
        import shutil
        shutil.move(folder / "out", folder / f"out-{kill}")
        continue
    after = parts()
    for path, node in before.items():
        if path in after:
            assert after[path] == node, f"{path} was made again"
    for path in after:
        header = read_header(path)
        assert checksum(ShardReader(header).stored(), header.r_max) == header.checksum
        stages.add(path.parent.parent.name if path.parent.name != "blocks" else "blocks")
os.waitpid(start("out"), 0)
print(sorted(stages))
"""


def pack(tmp_path: Path, n: int) -> Path:
    import gzip

    plain = write_xyz(tmp_path / "train.xyz", [*molecules(n), *atoms_of_molecules()])
    packed = tmp_path / "train.xyz.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    return packed


def test_killed_at_20_random_moments(tmp_path):
    pack(tmp_path, 128)
    (tmp_path / "script.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "20"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "blocks" in done.stdout
    whole = files_below(tmp_path / "whole")
    outputs = list(tmp_path.glob("out*"))
    assert outputs
    for output in outputs:
        assert files_below(output) == whole
    assert not (tmp_path / ".out.partial").exists()


ONE_RANK_DIES = """
import os, signal, sys
from mace_train import cli
from mace_train.data.preprocess import read_block
from mace_train.distributed.launcher import rank_of_process

read, n_read = read_block.structure_from_atoms, 0

def counted(*arguments, **keywords):
    global n_read
    n_read += 1
    if n_read == 30 and rank_of_process() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments, **keywords)

read_block.structure_from_atoms = counted
cli.main(sys.argv[1:])
"""


def test_one_rank_is_killed(tmp_path):
    data = pack(tmp_path, 160)
    (tmp_path / "script.py").write_text(ONE_RANK_DIES)
    command = ["preprocess", f"data.train_file={data}", "structures_per_shard=16"]
    output = f"output={tmp_path / 'out'}"
    done = mpiexec(2, str(tmp_path / "script.py"), *command, output)
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.partial/blocks/*.json"))
    done = mpiexec(2, "-m", "mace_train", *command, output)
    assert done.returncode == 0, done.stderr
    assert "continuing in" in done.stderr
    run_command(*command, f"output={tmp_path / 'alone'}")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


HELD = """
import sys, time
from pathlib import Path
from mace_train import cli
from mace_train.data.preprocess import read_block

folder, read = Path(__file__).parent, read_block.structure_from_atoms

def held(described, keys, source, *arguments, **keywords):
    if source.endswith("structure 40"):
        (folder / "held").touch()
        while not (folder / "go on").exists():
            time.sleep(0.01)
    return read(described, keys, source, *arguments, **keywords)

read_block.structure_from_atoms = held
if __name__ == "__main__":
    cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("workers", "kind"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_signals_end_it_and_it_continues(tmp_path, capsys, workers, kind):
    data = pack(tmp_path, 60)
    (tmp_path / "script.py").write_text(HELD)
    command = ["preprocess", f"data.train_file={data}", f"output={tmp_path / 'out'}"]
    command += ["structures_per_shard=16", f"workers={workers}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # a suite that runs in the background of a shell is started with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    signal.signal(signal.SIGINT, before)
    until = time.monotonic() + 240
    while not finished_and_held(tmp_path) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)  # as a terminal does: to parent and workers
    else:
        process.terminate()
    (tmp_path / "go on").touch()  # an interrupt lets the workers end what they are at
    _, errors = process.communicate(timeout=240)
    assert process.returncode == (130 if kind == signal.SIGINT else 143), errors
    assert "Traceback" not in errors
    assert "are kept in" in errors
    assert not (tmp_path / "out").exists()
    run_command(*command[:-1])  # by another number of processes
    assert "continuing in" in capsys.readouterr().err
    assert len(ShardSet(tmp_path / "out" / "train")) == 54


def finished_and_held(folder: Path) -> bool:
    """Whether a block is finished and another one is under way."""
    return (folder / "held").exists() and bool(list(folder.glob(".out.partial/blocks/*.json")))


def test_a_full_disk(tmp_path, monkeypatch):
    from mace_train.data.preprocess import read_block
    from mace_train.errors import InputError
    from tests.data.factories import run

    write, written = read_block.write_shard, []

    def full(path, *arguments, **keywords):
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, *arguments, **keywords)

    monkeypatch.setattr(read_block, "write_shard", full)
    structures = [*molecules(40), *atoms_of_molecules()]
    with pytest.raises(InputError, match=r"No space left on device .*the same command then cont"):
        run(tmp_path, structures, structures_per_shard=8)
    monkeypatch.setattr(read_block, "write_shard", write)
    nodes = [path.stat().st_ino for path in written]
    (tmp_path / ".out.partial" / "keep").mkdir()
    output = run(tmp_path, None, train_file=str(tmp_path / "train.xyz"), structures_per_shard=8)
    assert len(nodes) == 2
    assert len(ShardSet(output / "train")) == 36
