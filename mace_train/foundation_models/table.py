"""The table of foundation models: name, what it is, licence, addresses, size, SHA-256.

Names are those of mace-torch: of ``mace_mp`` and of ``mace_run_train --foundation_model``.
Addresses are those of mace-torch 0.3.16 (mace/calculators/foundations_models.py), and where their
repository is now called otherwise, the new name. Licences are those of the table in mace-torch's
README; of MH-0 and MH-1 also the authors' answer in github.com/ACEsuit/mace-foundations/issues/54.
SHA-256 of small, medium-mpa-0 and small_off stand in mace-torch's own tests
(tests/golden/foundation_artifacts.py); the others, like sizes, in public projects that use the
files (github.com/bonan-group/symmetrix-xl: benchmarks/foundation_model_support_manifest.json).
The addresses could not be reached when this was written: nothing here was compared with the files.
"""

from dataclasses import dataclass

LICENCES = {
    "MIT": "MIT licence",
    "ASL": "Academic Software License (ASL, https://github.com/gabor1/ASL), which does not permit "
    "commercial use",
}
TO_ACCEPT = ("ASL",)
"""Licences that a setting has to accept by name."""
NOT_READ = dict.fromkeys(
    ("polar-1-s", "polar-1-m", "polar-1-l"),
    "a PolarMACE, whose long-range electrostatics mace-train does not have; use mace-torch",
)
"""Names of mace-torch whose models cannot be imported, with the reason."""


@dataclass(frozen=True)
class FoundationModel:
    """One row of the table."""

    name: str
    title: str
    licence: str
    addresses: tuple[str, ...]
    n_bytes: int | None
    """None where no source states it."""
    sha256: str | None
    """None where no source states it: then that of the first download is kept."""

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.addresses[0].rpartition("/")[2]

    @property
    def size(self) -> str:
        """In MB, as text."""
        return "?" if self.n_bytes is None else f"{self.n_bytes / 1e6:.0f}"


def _released(path: str, *repositories: str) -> tuple[str, ...]:
    """Addresses of a release; mace-mp is now called mace-foundations."""
    return tuple(
        f"https://github.com/ACEsuit/{repository}/releases/download/{path}"
        for repository in repositories or ("mace-mp", "mace-foundations")
    )


def _off(size: str, sha256: str) -> FoundationModel:
    path = f"mace_off23/MACE-OFF23_{size}.model"
    addresses = (
        f"https://raw.githubusercontent.com/ACEsuit/mace-off/main/{path}",
        f"https://github.com/ACEsuit/mace-off/raw/main/{path}",
    )
    return FoundationModel(f"{size}_off", f"MACE-OFF23 {size}", "ASL", addresses, None, sha256)


_ROWS = (
    FoundationModel(
        "small",
        "MACE-MP-0 small",
        "MIT",
        _released("mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model"),
        32581838,
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
    ),
    FoundationModel(
        "medium",
        "MACE-MP-0 medium",
        "MIT",
        _released("mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model"),
        44422970,
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
    ),
    FoundationModel(
        "large",
        "MACE-MP-0 large",
        "MIT",
        _released("mace_mp_0/MACE_MPtrj_2022.9.model"),
        133803220,
        "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
    ),
    FoundationModel(
        "small-0b",
        "MACE-MP-0b small",
        "MIT",
        _released("mace_mp_0b/mace_agnesi_small.model"),
        67603120,
        "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    ),
    FoundationModel(
        "medium-0b",
        "MACE-MP-0b medium",
        "MIT",
        _released("mace_mp_0b/mace_agnesi_medium.model"),
        79447096,
        "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    ),
    FoundationModel(
        "small-0b2",
        "MACE-MP-0b2 small",
        "MIT",
        _released("mace_mp_0b2/mace-small-density-agnesi-stress.model"),
        67622684,
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
    ),
    FoundationModel(
        "medium-0b2",
        "MACE-MP-0b2 medium",
        "MIT",
        _released("mace_mp_0b2/mace-medium-density-agnesi-stress.model"),
        79462798,
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
    ),
    FoundationModel(
        "large-0b2",
        "MACE-MP-0b2 large",
        "MIT",
        _released("mace_mp_0b2/mace-large-density-agnesi-stress.model"),
        98544548,
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
    ),
    FoundationModel(
        "medium-0b3",
        "MACE-MP-0b3 medium",
        "MIT",
        _released("mace_mp_0b3/mace-mp-0b3-medium.model"),
        79472952,
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    ),
    FoundationModel(
        "medium-mpa-0",
        "MACE-MPA-0 medium",
        "MIT",
        _released("mace_mpa_0/mace-mpa-0-medium.model"),
        79462305,
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
    ),
    FoundationModel(
        "small-omat-0",
        "MACE-OMAT-0 small",
        "ASL",
        _released("mace_omat_0/mace-omat-0-small.model"),
        None,
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
    ),
    FoundationModel(
        "medium-omat-0",
        "MACE-OMAT-0 medium",
        "ASL",
        _released("mace_omat_0/mace-omat-0-medium.model"),
        None,
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
    ),
    FoundationModel(
        "mace-matpes-pbe-0",
        "MACE-MATPES-PBE-0",
        "ASL",
        _released("mace_matpes_0/MACE-matpes-pbe-omat-ft.model", "mace-foundations"),
        79471284,
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
    ),
    FoundationModel(
        "mace-matpes-r2scan-0",
        "MACE-MATPES-r2SCAN-0",
        "ASL",
        _released("mace_matpes_0/MACE-matpes-r2scan-omat-ft.model", "mace-foundations"),
        79470738,
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
    ),
    FoundationModel(
        "mh-0",
        "MACE-MH-0",
        "ASL",
        _released("mace_mh_1/mace-mh-0.model", "mace-foundations"),
        None,
        "d62ff8f293664e6556cfa49364b28ee72a70cf1e6150f3c111a578397fed609d",
    ),
    FoundationModel(
        "mh-1",
        "MACE-MH-1",
        "ASL",
        _released("mace_mh_1/mace-mh-1.model", "mace-foundations"),
        59208139,
        "a522eb7f59c7879963d41586528f4980baf33e086c94aa92e3eafdeccad3be47",
    ),
    _off("small", "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f"),
    _off("medium", "4842c52ad210d6e1f84d6cf1ffa70fae25a7e0d755ed55cf223f43913f587db7"),
    _off("large", "a29e397dbf3e7a24ac50a9b0dfc919bd5a62efa346f5895a6237b0950c1d76f4"),
    FoundationModel(
        "mace_omol",
        "MACE-OMOL-0 extra large",
        "ASL",
        _released("mace_omol_0/MACE-omol-0-extra-large-1024.model", "mace-foundations"),
        422242640,
        "9b64b4fd5153ca578c694abc57806d8111050de6ff652e695c9b525bc4d36469",
    ),
)
MODELS = {row.name: row for row in _ROWS}
