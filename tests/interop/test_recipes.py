"""configs/model/ of published models: what from-mace-config makes of the published arguments."""

import shlex

import pytest

from mace_train.interop.from_mace_config import _word, translate
from tests.model.recipes import model_settings

DENSITY = (
    "--model=MACE --interaction_first=RealAgnosticDensityInteractionBlock"
    " --interaction=RealAgnosticDensityResidualInteractionBlock --pair_repulsion"
    " --distance_transform=Agnesi --num_interactions=2 --correlation=3 --max_ell=3"
)
PUBLISHED = {  # arguments of the architecture in the scripts that the files name
    "density": DENSITY,
    "mp_0b2_large": f"{DENSITY} --r_max=5.0 --max_L=2 --num_channels=128 --num_radial_basis=8"
    " --MLP_irreps=16x0e --scaling=rms_forces_scaling",
    "mp_0b3": f"{DENSITY} --r_max=6.0 --max_L=1 --num_channels=128 --num_radial_basis=10"
    " --MLP_irreps=16x0e --scaling=rms_forces_scaling",
    "omat_0": f"{DENSITY} --r_max=6.0 --hidden_irreps='128x0e + 128x1o' --scaling=no_scaling",
    "omol": "--model=ScaleShiftMACE --apply_cutoff=False --num_interactions=3 --correlation=2"
    " --interaction_first=RealAgnosticResidualNonLinearInteractionBlock --r_max=6.0"
    " --interaction=RealAgnosticResidualNonLinearInteractionBlock --num_cutoff_basis=5"
    " --hidden_irreps='1024x0e + 1024x1o + 1024x2e' --edge_irreps='128x0e + 128x1o + 128x2e'"
    " --max_ell=3 --num_radial_basis=8 --MLP_irreps=16x0e --radial_MLP='[64, 64, 64]'"
    """ --embedding_specs='{"total_spin":{"type":"categorical","per":"graph","in_dim":1,"""
    """"emb_dim":1024,"num_classes":101,"offset":0},"total_charge":{"type":"categorical","""
    """"per":"graph","in_dim":1,"emb_dim":1024,"num_classes":201,"offset":100}}'"""
    " --scaling=rms_forces_scaling",
    "off_medium": "--model=MACE --num_interactions=2 --num_channels=128 --max_L=1 --correlation=3"
    " --r_max=5.0",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_arguments(name):
    words = ["--name=a", "--train_file=a.xyz", *shlex.split(PUBLISHED[name])]
    equal, without = translate(None, words)
    assert without == []
    translated = model_settings(
        [f"{key}={_word(value)}" for key, value in equal["train"].items() if "." in key]
    )
    recipe = model_settings([f"model={name}"])
    assert recipe.r_max == (None if name == "density" else equal["preprocess"].get("r_max", 5.0))
    recipe.r_max = None  # belongs to the data
    assert recipe == translated
