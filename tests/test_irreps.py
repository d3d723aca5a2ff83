"""Irreps in e3nn's notation: what users type, what MACE can have, and when e3nn is imported."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mace_train.errors import InputError
from mace_train.irreps import FeatureIrreps, count_scalars, import_o3, importing_e3nn, irreps_string
from mace_train.settings import ModelSettings


@pytest.mark.parametrize(
    ("text", "mul", "l_max"),
    [("128x0e", 128, 0), ("128x0e + 128x1o", 128, 1), ("3x0e+3x1o+3x2e", 3, 2), ("0e+1o", 1, 1)],
)
def test_features_of_mace(text, mul, l_max):
    found = FeatureIrreps.parse(text, "model.hidden_irreps")
    assert found == FeatureIrreps(mul, l_max)
    theirs = import_o3().Irreps(str(found))
    assert theirs == import_o3().Irreps(text)
    assert (theirs.dim, theirs.lmax) == (mul * found.n_components, l_max)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("128x0e+64x1o", "the same multiplicity"),
        ("64x1o+64x0e", "in this order"),
        ("64x0e+64x1e", "0e, 1o, 2e"),
        ("64x0o", "0e, 1o, 2e"),
        ("64x0e+64x2e", "0e, 1o, 2e"),
        ("0x0e", "0e, 1o, 2e"),
        ("", "0e, 1o, 2e"),
        ("128", "no irreps of e3nn; write multiplicity"),
        ("128x0e+-1x1o", "no irreps of e3nn"),
    ],
)
def test_features_that_mace_cannot_have(text, problem):
    with pytest.raises(InputError, match=problem) as error:
        ModelSettings(hidden_irreps=text)
    message = str(error.value)
    assert message.startswith(f"model.hidden_irreps={text!r}")
    assert "\n" not in message


def test_hidden_irreps_set_channels_and_degree():
    settings = ModelSettings(hidden_irreps="32x0e+32x1o+32x2e")
    assert (settings.num_channels, settings.max_L) == (32, 2)
    assert settings == ModelSettings(num_channels=32, max_L=2)  # however it was written
    assert ModelSettings(**vars(settings)) == settings  # as it is read from a checkpoint
    assert replace(settings, num_channels=16, max_L=1) == ModelSettings(num_channels=16)
    assert ModelSettings(hidden_irreps="32x0e", num_channels=32, max_L=0).num_channels == 32


@pytest.mark.parametrize("other", [{"num_channels": 64}, {"max_L": 2}])
def test_hidden_irreps_against_num_channels_and_max_L(other):
    name, value = next(iter(other.items()))
    with pytest.raises(InputError, match=f"but model.{name}={value}; give hidden_irreps, or"):
        ModelSettings(hidden_irreps="32x0e", **other)


def test_hidden_scalars():
    assert ModelSettings(MLP_irreps="8x0e + 8x0e").mlp_width() == 16
    for text, problem in (
        ("16x1o", "must be scalars, like '16x0e'"),
        ("16x0o", "must be scalars"),
        ("0x0e", "must be scalars"),
        ("wide", "no irreps of e3nn"),
    ):
        with pytest.raises(InputError, match=problem):
            count_scalars(text, "model.MLP_irreps")


def test_strings_are_those_of_e3nn():
    for multiplicities in ([10], [3, 2], [1, 7, 4, 2]):
        text = irreps_string(multiplicities)
        assert str(import_o3().Irreps(text)) == text


@pytest.mark.parametrize("before", [None, "0"])
def test_the_import_restores_the_environment(before, monkeypatch):
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if before is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, before)
    with importing_e3nn():
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before


def test_e3nn_is_imported_for_typed_irreps_alone():
    """It takes longer than all else at the start; its warnings are not shown."""
    program = """
import sys
from mace_train.model.mace import MACE
from mace_train.settings import ModelSettings, TrainSettings
ModelSettings(MLP_irreps="32x0e")
assert not any(name.split(".")[0] in ("e3nn", "sympy") for name in sys.modules)
ModelSettings(hidden_irreps="8x0e+8x1o")
assert "e3nn.o3" in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_FORCE")}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)


def test_equal_widths_are_equal_settings():
    written = ModelSettings(MLP_irreps="4x0e + 4x0e", hidden_irreps="8x0e + 8x1o")
    assert written == ModelSettings(MLP_irreps="8x0e", num_channels=8, max_L=1)


@pytest.mark.parametrize(
    "changes",
    [{"MLP_irreps": "99999999999999x0e"}, {"hidden_irreps": "99999999x0e+99999999x1o"}],
)
def test_widths_that_must_be_slips_are_refused(changes):
    with pytest.raises(InputError, match=r"irreps=.*: 9+ channels, at most 65536 are possible"):
        ModelSettings(**changes)
