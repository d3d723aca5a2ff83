"""inspect: counts what the shards hold, plots it, and finds what was changed."""

import numpy as np
import pytest

from mace_train.data.shards.shard_set import ShardSet
from tests.conftest import run_command


def test_inspect(prepared, tmp_path, capsys):
    run_command("inspect", str(prepared), f"output={tmp_path}")
    shown = capsys.readouterr().out
    shards = ShardSet(prepared / "train")
    sizes = " ".join(f"{x:.4g}" for x in np.percentile(shards.n_atoms, (0, 5, 50, 95, 100)))
    of_train = next(line for line in shown.splitlines() if line.startswith("│ atoms"))
    assert of_train.replace("│", " ").split()[1:] == sizes.split()
    n = sum(int((shards.sample(i).structure.numbers == 13).sum()) for i in range(len(shards)))
    assert f'"Al": {n}' in shown
    assert f"hash {shards.dataset_hash}" in shown
    assert 'structures by head: "Default":' in shown
    assert "checksums of 2 splits: ok" in shown
    assert (tmp_path / "inspect.png").stat().st_size > 10_000


def test_a_plain_folder_of_shards(prepared, tmp_path, capsys):
    run_command("inspect", str(prepared / "valid"), "plots=false")
    assert "valid: " in capsys.readouterr().out
    assert not (prepared / "valid" / "inspect.png").exists()


def test_a_changed_byte(prepared, tmp_path, capsys):
    import shutil

    shutil.copytree(prepared, tmp_path / "copy")
    path = sorted((tmp_path / "copy" / "train").glob("*.h5"))[1]
    offset = ShardSet(path.parent).headers[1].layout["positions"][0]
    content = bytearray(path.read_bytes())
    content[offset + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        run_command("inspect", str(tmp_path / "copy"), "plots=false")
    assert f"{path.name} is damaged" in capsys.readouterr().err
