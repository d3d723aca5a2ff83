"""preprocess: errors and signals in the middle leave no files behind."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.factories import (
    atoms_of_molecules,
    molecules,
    run,
    write_xyz,
)

INTERRUPTED = """
import signal
import sys
from mace_train.data import preprocess as module
from mace_train.settings import DataSettings, PreprocessSettings

def slow(*arguments, **keywords):
    for structure in read(*arguments, **keywords):
        yield structure
        print("started", flush=True)
        import time
        time.sleep(0.05)

def terminate(*_):  # as the command line does
    raise SystemExit(143)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    read, module.read_structures = module.read_structures, slow
    module.preprocess(PreprocessSettings(
        data=DataSettings(train_file=sys.argv[1]), output=sys.argv[2], workers=int(sys.argv[3]),
        structures_per_shard=2,
    ))
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(tmp_path, workers, kind):
    plain = write_xyz(tmp_path / "train.xyz", [*molecules(200), *atoms_of_molecules()])
    data = tmp_path / "train.xyz.gz"
    data.write_bytes(gzip.compress(Path(plain).read_bytes()))
    (tmp_path / "temporary").mkdir()
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(data), str(tmp_path / "out"), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TMPDIR": str(tmp_path / "temporary"),
        },
    )
    assert process.stdout is not None
    for _ in range(6):  # some shards are written or being written
        assert process.stdout.readline() == "started\n"
    assert list((tmp_path / "temporary").glob("mace-train-*"))
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)  # as a terminal does: to parent and workers
    else:
        process.terminate()
    _, errors = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert process.returncode not in (0, None)
        assert errors.rstrip().endswith("KeyboardInterrupt")
    else:
        assert process.returncode == 143
        assert errors == ""
    names = ["script.py", "temporary", "train.xyz", "train.xyz.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert not list((tmp_path / "temporary").glob("mace-train-*"))


def test_a_temporary_copy_goes_with_an_error_elsewhere(tmp_path, monkeypatch):
    """Where the error is not in reading, the copy does not wait for the end of the traceback."""
    plain = write_xyz(tmp_path / "train.xyz", [*molecules(9), *atoms_of_molecules()])
    packed = tmp_path / "train.xyz.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def stop(*_):
        assert len(list(temporary.iterdir())) == 1
        raise SystemExit(143)

    monkeypatch.setattr("mace_train.data.preprocess.write_shard", stop)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, None, train_file=str(packed), structures_per_shard=2)
    assert error.value.code == 143
    assert not list(temporary.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["temporary", "train.xyz", "train.xyz.gz"]
