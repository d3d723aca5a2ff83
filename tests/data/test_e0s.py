"""e0s: given, from isolated atoms, or fitted as one least-squares problem would."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.e0s import (
    E0Source,
    E0Sources,
    IsolatedAtoms,
    check_covered,
    fit_E0s,
    triangle_of,
)
from mace_train.errors import InputError


def given_E0s(value):
    return E0Sources(value).of("Default").given


def test_a_setting_that_gives_none():
    assert E0Sources(None).of("Default") == E0Source("isolated")
    assert E0Sources("IsolatedAtom").of("Default") == E0Source("isolated")
    for value in ("average", "Average", "AVERAGE"):
        assert E0Sources(value).of("any") == E0Source("average")


def test_every_head_has_its_own(tmp_path):
    path = tmp_path / "E0s.json"
    path.write_text('{"H": -1.0}')
    forms = E0Sources({"pbe": {1: -13.5}, "r2scan": "average", "hf": None, "cc": str(path)})
    assert forms.of("pbe") == E0Source("given", {1: -13.5})
    assert forms.of("r2scan").source == "average"
    assert forms.of("hf").source == "isolated"
    assert forms.of("cc").given == {1: -1.0}
    assert forms.given(["pbe", "hf", "cc", "other"]) == {"pbe": {1: -13.5}, "cc": {1: -1.0}}
    with pytest.raises(InputError, match=r"for the heads pbe, r2scan, hf, cc, but .* head Default"):
        forms.of("Default")


@pytest.mark.parametrize("mapping", [{1: -13.5, 8: -2000}, {"1": -13.5, "O": -2000}])
def test_mapping_and_file(tmp_path, mapping):
    expected = {1: -13.5, 8: -2000.0}
    assert given_E0s(mapping) == expected
    path = tmp_path / "E0s.json"
    path.write_text(json.dumps({str(key): value for key, value in mapping.items()}))
    assert given_E0s(str(path)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"Qq": 1.0}, "'Qq' is no element"),
        ({0: 1.0}, "0 is no element"),
        ({119: 1.0}, "119 is no element"),
        ({1.5: 1.0}, "1.5 is no element"),
        ({1: "much"}, "energy of 1 is 'much'"),
        ({1: float("nan")}, "energy of 1 is nan"),
        ({1: True}, "energy of 1 is True"),
        ({1: 1e300}, r"E0 of 1=1e\+300 is out of range; .* 1e\+08 .eV"),
        ("missing.json", "E0s=missing.json: cannot read"),
    ],
)
def test_values_that_are_no_E0s(value, message):
    with pytest.raises(InputError, match=message):
        given_E0s(value)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not JSON"), ("[1, 2]", "must be a mapping")]
)
def test_files_that_hold_no_E0s(tmp_path, content, message):
    path = tmp_path / "E0s.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        given_E0s(str(path))


def test_isolated_atoms():
    atoms = IsolatedAtoms()
    atoms.add(1, -13.5, "a")
    atoms.add(8, -2000.0, "b")
    atoms.add(1, -13.5 + 1e-9, "c")
    assert atoms.E0s == {1: -13.5, 8: -2000.0}
    assert atoms.n_structures == 3
    with pytest.raises(InputError, match=r"d: isolated atom of H with energy -13.4 eV, but a has"):
        atoms.add(1, -13.4, "d")
    with pytest.raises(InputError, match="e: an isolated atom without energy"):
        atoms.add(1, None, "e")


def test_coverage():
    assert check_covered({1: -1.0, 6: -2.0, 8: -3.0}, [1, 8], "x") == {1: -1.0, 8: -3.0}
    with pytest.raises(InputError, match=r"for Xe \(54\); x has H; add isolated-atom"):
        check_covered({1: -1.0}, [1, 54], "x")
    with pytest.raises(InputError, match=r"^a.xyz, structure 7: no .*; x has none; try again$"):
        check_covered({}, [1], "x", where="a.xyz, structure 7", remedy="try again")


@given(
    n=st.integers(1, 60), size=st.integers(1, 60), seed=st.integers(0, 2**32), full=st.booleans()
)
@settings(deadline=None, max_examples=40)
def test_chunks_fit_as_one_problem(n, size, seed, full):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, (n, 4)).astype(float)
    counts[:, 0] += 1
    if not full:
        counts[:, 3] = 2 * counts[:, 1]  # these two are not told apart
    energies = counts @ [-13.5, -1026.8, -2037.8, -0.1] + rng.normal(scale=0.1, size=n)
    expected = np.linalg.lstsq(counts, energies, rcond=1e-10)[0]
    cuts = [slice(i, i + size) for i in range(0, n, size)]
    triangles = [triangle_of(counts[cut], energies[cut]) for cut in cuts]
    fitted = fit_E0s(triangles, n, [1, 6, 8, 9])
    np.testing.assert_allclose(list(fitted.values()), expected, rtol=1e-9, atol=1e-9)


def test_what_is_not_determined_is_logged(caplog):
    fit_E0s([triangle_of(np.array([[1.0, 1.0]] * 3), np.array([-3.0] * 3))], 3, [1, 8])
    assert "determine only 1 of 2 E0s" in caplog.text
    assert "Single E0s are not meaningful" in caplog.text
    assert "only their sums over compositions seen in training" in caplog.text


def test_E0s_without_any_energy_are_zero(caplog):
    assert fit_E0s([np.zeros((0, 3))], 0, [1, 8]) == {1: 0.0, 8: 0.0}
    assert "no structure has an energy" in caplog.text
