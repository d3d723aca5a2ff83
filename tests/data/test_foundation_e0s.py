"""E0s of a foundation model: from the checked header of a checkpoint, or one message."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mace_train.data.foundation_e0s import foundation_E0s
from mace_train.errors import InputError
from mace_train.train import checkpoint

GOOD = {"atomic_numbers": [1, 6], "heads": [{"name": "Default", "E0s": [-13.5, -1000.25]}]}


def written(path: Path, model_data: Any) -> Path:
    """A checkpoint whose header has this part, with a checksum that fits."""
    tensors = {"model.w": torch.zeros(1)}
    header = {"format": "mace-train checkpoint", "format_version": 2, "model_data": model_data}
    text = model_data if isinstance(model_data, str) else json.dumps(header)
    save_file(
        tensors, path, metadata={"header": text, "checksum": checkpoint.checksum(tensors, text)}
    )
    return path


def test_they_are_read_from_the_header_inside_not_from_the_file_beside(tmp_path):
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, {"model.w": torch.zeros(1)}, {"model_data": GOOD})
    expected = {1: -13.5, 6: -1000.25}
    assert foundation_E0s(str(path)) == expected
    readable = path.with_suffix(".json")
    readable.write_text(readable.read_text().replace("-13.5", "-99.5"))
    assert foundation_E0s(str(path)) == expected
    readable.unlink()
    assert foundation_E0s(str(path)) == expected
    path.write_bytes(path.read_bytes().replace(b"-13.5", b"-99.5"))
    with pytest.raises(InputError, match="the checksum does not fit"):
        foundation_E0s(str(path))


def test_a_file_without_a_header_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    path.with_suffix(".json").write_text(json.dumps({"model_data": GOOD}))
    with pytest.raises(InputError, match="not a mace-train checkpoint"):
        foundation_E0s(str(path))


def test_a_header_of_an_older_version_has_one_head(tmp_path):
    old = {"atomic_numbers": [1, 6], "E0s": [-13.5, -1000]}
    assert foundation_E0s(str(written(tmp_path / "a.safetensors", old))) == {1: -13.5, 6: -1000.0}


HEAD = {"E0s": [1.0]}
WRONG = {
    "a deep header": ("[" * 100_000, "not as mace-train writes them"),
    "no mapping": ([], "model_data=\\[\\] is not a mapping"),
    "heads in a mapping": ({"atomic_numbers": [6], "heads": {"a": 1}}, "heads=.* is not a list"),
    "a head that is a number": ({"atomic_numbers": [6], "heads": [HEAD, 5]}, "heads.*5 is not"),
    "heads without names": ({"atomic_numbers": [6], "heads": [HEAD, {}]}, "has the heads Default"),
    "a name that is a number": (
        {"atomic_numbers": [6], "heads": [{**HEAD, "name": 3}]},
        "name=3 is not a string",
    ),
    "no E0s": ({"atomic_numbers": [6], "heads": [{"name": "a"}]}, "E0s"),
    "no elements": ({"heads": [HEAD]}, "atomic_numbers"),
    "an element and a part": ({"atomic_numbers": [6.7], "heads": [HEAD]}, r"=6\.7 is not a whole"),
    "an element that is true": (
        {"atomic_numbers": [True], "heads": [HEAD]},
        "=True is not a whole",
    ),
    "an element without end": ({"atomic_numbers": [float("inf")], "heads": [HEAD]}, "Infinity"),
    "an element of 400 digits": ({"atomic_numbers": [10**400], "heads": [HEAD]}, "is none"),
    "an energy of 400 digits": ({"atomic_numbers": [6], "heads": [{"E0s": [10**400]}]}, "finite"),
    "an energy in text": ({"atomic_numbers": [6], "heads": [{"E0s": ["1"]}]}, "is not a number"),
    "an energy too few": ({"atomic_numbers": [6, 8], "heads": [HEAD]}, "not as mace-train writes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_one_message(name, tmp_path):
    model_data, message = WRONG[name]
    path = written(tmp_path / "a.safetensors", model_data)
    with pytest.raises(InputError, match=message) as raised:
        foundation_E0s(str(path))
    assert len(str(raised.value)) < 500
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([float("inf")], dtype=torch.float64),
        torch.tensor([float("nan")]),
        torch.tensor([6.7]),
        torch.tensor(6),
        torch.tensor([True]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(1, 200),
        [6],
        None,
    ],
)
def test_wrong_atomic_numbers_in_a_model_of_mace_torch_are_one_message(numbers, tmp_path):
    model = nn.Module()
    model.register_buffer("atomic_numbers", torch.tensor([6]))
    model.atomic_energies_fn = nn.Module()
    model.atomic_energies_fn.register_buffer("atomic_energies", torch.ones(1, 1))
    torch.save(model, tmp_path / "a.model")
    assert foundation_E0s(str(tmp_path / "a.model")) == {6: 1.0}
    model._buffers["atomic_numbers"] = numbers
    torch.save(model, tmp_path / "b.model")
    with pytest.raises(InputError, match=r"b\.model: no model of mace-torch"):
        foundation_E0s(str(tmp_path / "b.model"))
