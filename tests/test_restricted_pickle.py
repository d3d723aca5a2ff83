"""Reading tensors out of a foreign pickle: the same tensors as torch.load, and no code is run."""

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mace_train import restricted_pickle
from mace_train.data.foundation_e0s import foundation_E0s
from mace_train.errors import InputError
from mace_train.restricted_pickle import RestrictedPickleError, load_tensors


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + struct.pack("<B", len(data)) + data


def global_(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"  # STACK_GLOBAL


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"t" + b"R"


def zip_of(path: Path, pickled: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", pickled)
        for name, data in entries.items():
            file.writestr(f"model/{name}", data)
    return path


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that would make the file ``marker``, by name."""
    code = text(f"open({str(marker)!r}, 'w').close()")
    evaluate = call(global_("torch._utils", "_rebuild_tensor.__builtins__.get"), text("eval"))
    start, stop = b"\x80\x04", b"."
    return {
        "a dotted name": start + call(evaluate, code) + stop,
        "eval": start + call(global_("builtins", "eval"), code) + stop,
        "os.system": pickle.dumps(Runs(marker)),
        "a name that begins like a known one": start
        + call(call(global_("torch._utils", "_rebuild_tensor_v2.__globals__.get"), text("os")))
        + stop,
        "torch's own loader": start + call(global_("torch", "load"), text(str(marker))) + stop,
        "an old opcode": b"(S" + repr(f"touch {marker}").encode() + b"\nios\nsystem\n.",
    }


NAMES = list(programs(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_in_an_zip_of(name, tmp_path):
    marker = tmp_path / "ran"
    path = zip_of(tmp_path / "a.model", programs(marker)[name])
    with pytest.raises(InputError, match="no model of mace-torch"):
        foundation_E0s(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_in_a_bare_pickle(name, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "a.model"
    path.write_bytes(programs(marker)[name])
    with pytest.raises(InputError, match=r"before 1\.6"):
        foundation_E0s(str(path))
    assert not marker.exists()


def test_the_programs_would_run(tmp_path):
    """What the tests above are worth: without the restriction the programs do their work."""
    for name in ("eval", "os.system", "an old opcode", "a dotted name"):
        marker = tmp_path / name.replace(" ", "-")
        pickle.loads(programs(marker)[name])
        assert marker.exists(), name


def test_what_a_file_changes_in_the_table_ends_with_it(tmp_path):
    """BUILD may set attributes of a known function, for the file that does so alone."""
    known = "torch._utils", "_rebuild_tensor_v2"
    changed = b"\x80\x04" + global_(*known) + b"N}" + text("__doc__") + text("x") + b"s\x86b."
    assert load_tensors(zip_of(tmp_path / "a.model", changed)).__doc__ == "x"
    unchanged = b"\x80\x04" + global_(*known) + b"."
    assert load_tensors(zip_of(tmp_path / "b.model", unchanged)).__doc__ is None


def tensor_of(storage: bytes, numbers: bytes) -> bytes:
    """A call of _rebuild_tensor_v2 on a storage of one float32, with numbers as a pickled tuple."""
    reference = b"(" + text("storage") + global_("torch", "FloatStorage") + text("0")
    reference += text("cpu") + b"K" + storage + b"tQ"
    return global_("torch._utils", "_rebuild_tensor_v2") + b"(" + reference + numbers + b"tR"


@pytest.mark.parametrize("state", [b"K\x00K\x00K\x00\x87", b"N}\x86", b"}"])
def test_tensors_take_no_state(state, tmp_path):
    """BUILD on a tensor would call Tensor.__setstate__, which changes its storage and size."""
    tensor = tensor_of(b"\x01", b"K\x00(K\x01t(K\x01t")
    plain = zip_of(tmp_path / "a.model", b"\x80\x04" + tensor + b".", **{"data/0": bytes(4)})
    assert torch.equal(load_tensors(plain), torch.zeros(1))
    changed = b"\x80\x04" + tensor + state + b"b."
    with pytest.raises(RestrictedPickleError, match="a state for a tensor"):
        load_tensors(zip_of(tmp_path / "b.model", changed, **{"data/0": bytes(4)}))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.", "opcode DUP"),  # 2^60 steps to hash the key
        (b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"Ns.", "a tuple as a key"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "Error"),  # BYTEARRAY8
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "opcode BINBYTES8|Error"),
    ],
)
def test_small_files_take_no_long_time_nor_much_memory(pickled, message, tmp_path):
    with pytest.raises(RestrictedPickleError, match=message):
        load_tensors(zip_of(tmp_path / "a.model", pickled))


SIZES = {
    "numbers of many bytes": (b"\x8a\xff" + b"\xff" * 254 + b"\x7f", 150_000, "more than 8 bytes"),
    "a number of 9 bytes": (b"\x8a\x09" + bytes(7) + b"\x80\x00", 1, "more than 8 bytes"),
    "a negative number of 9 bytes": (b"\x8a\x09" + b"\xff" * 7 + b"\x7f\xff", 1, "more than 8"),
    "many dimensions": (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", 150_000, "more than 64 dimensions"),
    "large dimensions": (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", 64, "beyond the end"),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_size_of_a_tensor_takes_no_long_time(name, tmp_path):
    """In another process: the product runs in C, where not even Ctrl-C would end it."""
    number, n_dimensions, message = SIZES[name]
    size = b"(" + b"h\x05" * n_dimensions + b"t"
    pickled = b"\x80\x04" + number + b"q\x050" + tensor_of(b"\x01", b"K\x00" + size + size) + b"."
    path = zip_of(tmp_path / "a.model", pickled, **{"data/0": bytes(4)})
    program = (
        "import sys, pathlib; from mace_train.restricted_pickle import load_tensors\n"
        "load_tensors(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert re.search(f"RestrictedPickleError: .*{message}", done.stderr), done.stderr[-500:]


def test_numbers_of_8_bytes_are_read(tmp_path):
    numbers = [2**31, 2**63 - 1, -(2**63)]
    path = zip_of(tmp_path / "a.model", pickle.dumps(numbers, protocol=2))
    assert load_tensors(path) == numbers


def test_many_classes_take_little_memory(tmp_path, monkeypatch):
    same = b"\x80\x02" + b"ca\nb\n0" * 3 + b"N."
    monkeypatch.setattr(restricted_pickle, "_MOST_CLASSES", 2)
    assert load_tensors(zip_of(tmp_path / "a.model", same)) is None
    many = b"\x80\x02" + b"".join(b"ca\n%d\n0" % i for i in range(3)) + b"N."
    with pytest.raises(RestrictedPickleError, match="more than 2 classes"):
        load_tensors(zip_of(tmp_path / "b.model", many))


def test_a_large_index_of_the_memo_takes_no_memory(tmp_path):
    path = zip_of(tmp_path / "a.model", b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".")
    assert load_tensors(path) is None


def test_bytes_and_numbers_of_numpy(tmp_path):
    """As protocol 2, that of torch.save, holds them."""
    values = [b"a\xff\x00", np.float64(7.25), np.float32(0.5), np.int64(-3), np.bool_(True)]
    torch.save(values, tmp_path / "a.pt")
    assert load_tensors(tmp_path / "a.pt") == values
    torch.save(np.complex128(1j), tmp_path / "b.pt")
    with pytest.raises(RestrictedPickleError, match="a number of NumPy that is none"):
        load_tensors(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("call_", "message"),
    [
        (call(global_("_codecs", "encode"), text("x"), text("rot13")), "another encoding"),
        (call(global_("_codecs", "encode"), b"N", text("latin1")), "another encoding"),
        (call(global_("numpy.core.multiarray", "scalar"), b"N", b"C\x08" + bytes(8)), "is none"),
    ],
)
def test_known_functions_take_what_torch_save_gives_them(call_, message, tmp_path):
    with pytest.raises(RestrictedPickleError, match=message):
        load_tensors(zip_of(tmp_path / "a.model", b"\x80\x04" + call_ + b"."))


def test_repeated_bytes_take_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(restricted_pickle, "_LARGEST_PICKLE", 1000)
    one = call(global_("_codecs", "encode"), text("x" * 200), text("latin1"))
    again = b"h\x01h\x00R" * 10  # of the arguments and the function in the memo
    function = global_("_codecs", "encode") + b"q\x01"
    arguments = b"(" + text("x" * 200) + text("latin1") + b"tq\x00"
    pickled = b"\x80\x04" + function + arguments + b"R" + again + b"."
    with pytest.raises(RestrictedPickleError, match="more bytes than a pickle may have"):
        load_tensors(zip_of(tmp_path / "a.model", pickled))
    assert load_tensors(zip_of(tmp_path / "b.model", b"\x80\x04" + one + b".")) == b"x" * 200


class Elements(nn.Module):
    """What foundation_E0s looks at."""

    def __init__(self, numbers: torch.Tensor, energies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("atomic_numbers", numbers)
        self.atomic_energies_fn = nn.Module()
        self.atomic_energies_fn.register_buffer("atomic_energies", energies)


@pytest.mark.parametrize(
    ("numbers", "energies", "message"),
    [
        ([1, 1], [0.0, 1.0], "element 1 is none, is listed twice"),
        ([1, 119], [0.0, 1.0], "element 119 is none"),
        ([-1, 8], [0.0, 1.0], "element -1 is none"),
        ([1, 8], [0.0, float("nan")], "element 8 .* has no finite E0"),
        ([[1], [8]], [0.0, 1.0], "no finite E0|no model of mace-torch"),
    ],
)
def test_what_is_no_energy_of_an_element_is_refused(numbers, energies, message, tmp_path):
    path = tmp_path / "a.model"
    good = Elements(torch.tensor([1, 8]), torch.tensor([[-1.0, -2.0]]))
    torch.save(good, path)
    assert foundation_E0s(str(path)) == {1: -1.0, 8: -2.0}
    torch.save(Elements(torch.tensor(numbers), torch.tensor([energies])), path)
    if numbers != [[1], [8]]:
        with pytest.raises(InputError, match=message):
            foundation_E0s(str(path))
    else:  # as many numbers as elements, in another shape
        assert foundation_E0s(str(path)) == {1: 0.0, 8: 1.0}


class Layer(nn.Module):
    """A module with what files hold: parameters, buffers, views, shared and empty storages."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        self.register_buffer("view", self.weight.detach().t()[1:])
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("narrow", torch.randn(3).to(torch.bfloat16))
        self.register_buffer("number", torch.tensor(7))


def test_tensors_are_those_of_torch(tmp_path):
    layer = Layer()
    torch.save(layer, tmp_path / "layer.pt")
    state = load_tensors(tmp_path / "layer.pt").state
    found = {**state["_parameters"], **state["_buffers"]}
    assert found.keys() == layer.state_dict().keys()
    for name, tensor in layer.state_dict().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    torch.save({"a": [torch.arange(5)], "dtype": torch.float32}, tmp_path / "dict.pt")
    loaded = load_tensors(tmp_path / "dict.pt")
    assert torch.equal(loaded["a"][0], torch.arange(5))
    assert loaded["dtype"] is torch.float32


def rewritten(path: Path, tmp_path: Path, change) -> Path:
    """A copy of a file of torch.save with its entries changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for info in source.infolist():
            data = change(info.filename.split("/", 1)[1], source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    return tmp_path / "b.pt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: data[:-8] if name == "data/0" else data, "has 32 bytes, expected 5"),
        (lambda name, data: None if name == "data/0" else data, "no item named"),
        (lambda name, data: b"big" if name == "byteorder" else data, "byte order 'big'"),
        (lambda name, data: None if name == "data.pkl" else data, "0 entries data.pkl"),
        (lambda name, data: data[:20] if name == "data.pkl" else data, "Error"),
    ],
)
def test_damage_is_said(change, message, tmp_path):
    torch.save(torch.arange(5), tmp_path / "a.pt")
    with pytest.raises(RestrictedPickleError, match=message):
        load_tensors(rewritten(tmp_path / "a.pt", tmp_path, change))


@pytest.mark.parametrize("size", [(6,), (3, 2), (-1,), (2**40,)])
def test_a_tensor_beyond_its_storage_is_refused(size, tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.arange(5), buffer)
    stored = pickle.dumps(size, protocol=2)[2:-1]
    with zipfile.ZipFile(buffer) as file:
        pickled = file.read("archive/data.pkl")
        data = {"data/0": file.read("archive/data/0")}
    assert pickled.count(pickle.dumps((5,), protocol=2)[2:-3]) == 1
    changed = pickled.replace(b"K\x05\x85", stored.replace(b"q\x00", b""), 1)
    assert changed != pickled
    with pytest.raises(RestrictedPickleError, match="tensor of size"):
        load_tensors(zip_of(tmp_path / "a.pt", changed, **data))


def test_compressed_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", pickle.dumps(0) + bytes(1 << 20))
    with pytest.raises(RestrictedPickleError, match="compressed"):
        load_tensors(tmp_path / "a.pt")
