"""JSON files read by what they must hold."""

from dataclasses import dataclass, field

import pytest

from mace_train.errors import InputError
from mace_train.json_files import converted, read_json


@dataclass
class Part:
    n: int
    x: float = 1.5


@dataclass
class Whole:
    name: str
    parts: list[Part]
    by_number: dict[int, float] = field(default_factory=dict)
    limit: int | None = None
    on: bool = False


GOOD = {"name": "a", "parts": [{"n": 1}, {"n": 2, "x": 3}], "by_number": {"8": -1}, "limit": 4}


def test_a_dataclass_from_json():
    found = converted(Whole, GOOD)
    assert found == Whole("a", [Part(1), Part(2, 3.0)], {8: -1.0}, 4)
    assert isinstance(found.parts[1].x, float)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "name=3 is not a string"),
        ({"parts": {}}, r"parts=\{\} is not a list"),
        ({"parts": [{"n": 1.0}]}, r"parts\[0\].n=1.0 is not a whole number"),
        ({"parts": [{"n": True}]}, r"parts\[0\].n=True is not a whole number"),
        ({"parts": [{"x": 1}]}, r"parts\[0\].n is missing"),
        ({"parts": [{"n": 1, "y": 1}]}, r"parts\[0\].y is not known"),
        ({"parts": [{"n": 1, "x": float("nan")}]}, r"parts\[0\].x=nan is not a finite number"),
        ({"parts": [{"n": 1, "x": 10**400}]}, r"parts\[0\].x=1000.* is not a finite number"),
        ({"by_number": {"x": 1}}, "by_number: key='x' is not a whole number"),
        ({"limit": "4"}, "limit='4' is not a whole number or null"),
        ({"on": 1}, "on=1 is not true or false"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        converted(Whole, GOOD | changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", r"holds \[1\], not a mapping"),
        (None, "cannot be read"),
    ],
)
def test_files(content, message, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_json(path, dict, "write it again")
    assert str(path) in str(error.value)
    assert str(error.value).endswith("write it again")
