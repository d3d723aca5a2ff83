"""What ranks send each other: equal values, types included, and nothing that runs."""

import json
import pickle
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mace_train.distributed.messages import decode, decode_record, encode, encode_record

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


def typed(value: Any) -> Any:
    """A value that is equal only where types are, too."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return [(typed(key), typed(item)) for key, item in value.items()]
    return type(value), repr(value)


@given(PLAIN)
def test_plain_values_arrive_as_they_were(value):
    assert typed(decode(encode(value))) == typed(value)


def test_arrays_and_tensors_arrive_as_they_were():
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3.0, np.float32),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.arange(3, dtype=">f8"),
        np.arange(6)[::2],
    ]
    tensors = [
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor(True),
        torch.zeros(0, 4, dtype=torch.int32),
        torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
    ]
    found = decode(encode({"arrays": arrays, 3: (tensors, Path("a/b"), float("inf"))}))
    for sent, array in zip(arrays, found["arrays"], strict=True):
        assert array.dtype == sent.dtype.newbyteorder("=")
        assert array.shape == sent.shape
        np.testing.assert_array_equal(array, sent)
        array.fill(0)  # a copy of its own, which can be written
    for sent, tensor in zip(tensors, found[3][0], strict=True):
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == sent.dtype
        torch.testing.assert_close(tensor, sent.detach(), rtol=0, atol=0)
    assert found[3][1:] == (Path("a/b"), float("inf"))


@dataclass
class Other:
    number: int


@pytest.mark.parametrize("value", [Other(1), {1, 2}, b"x", print, np.array([None]), 1j])
def test_what_is_not_plain_is_not_sent(value):
    with pytest.raises(TypeError, match="ranks send"):
        encode([value])


def test_a_pickle_is_no_message_and_does_not_run(tmp_path):
    class Exploit:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    pickled = pickle.dumps(Exploit())
    for message in (pickled, len(pickled).to_bytes(8, "little") + pickled):
        with pytest.raises(ValueError, match="message"):
            decode(message)
    assert not (tmp_path / "ran").exists()


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_value_or_a_value_error(data, whole):
    with suppress(ValueError):
        decode(len(data).to_bytes(8, "little") + data if whole else data)


@pytest.mark.parametrize(
    "described",
    [
        {"tuple": 3},
        {"dict": [[[], 1]]},
        {"dict": [1]},
        {"path": 3},
        {"array": ["object", [1]]},
        {"array": []},
        {"array": [[], [1]]},
        {"array": ["int8", [0] * 100]},
        {"tensor": ["int8", [0, 1 << 70]]},
        {"path": "\x00\ud800", "more": 1},
        {"array": ["float64", [1, -1]]},
        {"array": ["float64", [1e3]]},
        {"array": ["float64", [1 << 60]]},
        {"tensor": ["float32", [2]]},  # two more bytes than there are
        {"tensor": ["int8", [3]]},  # fewer
        {"tensor": ["Tensor", [4]]},
        {"tuple": [], "dict": []},
        {"pickle": "gASVBQ=="},
        {},
    ],
)
def test_a_wrong_description_is_a_value_error(described):
    text = json.dumps(described).encode()
    with pytest.raises(ValueError, match="a message that"):
        decode(len(text).to_bytes(8, "little") + text + bytes(4))


JUNK = ("[]", "{}", "-1", "1e400", "NaN", "null", '"float64"', "[[]]", str(1 << 70), '"path"')


def test_mutated_messages_are_a_value_or_a_value_error():
    """2000 messages whose tokens are exchanged, dropped or repeated, or whose bytes are changed."""
    random = Random(0)
    value = [
        1,
        (2.5, "a"),
        {"k": None},
        Path("a"),
        np.ones((2, 3)),
        torch.ones(2),
        np.zeros((0, 4)),
    ]
    good = bytes(encode(value))
    end = 8 + int.from_bytes(good[:8], "little")
    tokens = re.findall(r'"[^"]*"|[\w.+-]+|.', good[8:end].decode())
    refused = 0
    for number in range(2000):
        changed = list(tokens)
        for _ in range(random.randint(1, 3)):
            i, j = random.randrange(len(changed)), random.randrange(len(tokens))
            changed[i] = random.choice(["", changed[i] * 2, tokens[j], random.choice(JUNK)])
        text = bytearray("".join(changed).encode())
        if number % 4 == 0:
            text[random.randrange(len(text))] = random.randrange(256)
        for read in (
            lambda: decode(len(text).to_bytes(8, "little") + text + good[end:]),  # noqa: B023
            lambda: decode_record(bytes(text), count=int, host=str),  # noqa: B023
        ):
            try:
                read()
            except ValueError:
                refused += 1
    assert refused > 3000


def test_a_deep_message_is_a_value_error():
    text = b"[" * 100_000
    with pytest.raises(ValueError, match="RecursionError"):
        decode(len(text).to_bytes(8, "little") + text)


def test_records_have_the_keys_and_types_that_the_reader_expects():
    record = encode_record(count=3, host="node7")
    assert decode_record(record.encode(), count=int, host=str) == {"count": 3, "host": "node7"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"\xff\xfe",
        b"3",
        b'["count", "host"]',
        b'{"count": 3}',
        b'{"count": 3, "host": "a", "more": 1}',
        b'{"count": true, "host": "a"}',
        b'{"count": "3", "host": "a"}',
        b'{"count": 3, "host": "\\u001b[2J"}',
        b'{"count": 3, "host": "' + b"a" * 5000 + b'"}',
        b'{"count": ' + b"9" * 4200 + b', "host": "a"}',
        b"[" * 4000,
    ],
)
def test_another_record_is_a_value_error(data):
    with pytest.raises(ValueError, match="a record"):
        decode_record(data, count=int, host=str)
