"""Every argument of mace_run_train 0.3.16: its default, and our setting or why there is none.

``ARGUMENTS`` is the whole table; ``parser`` reads a command line or a YAML file by it, so that
mace-torch need not be installed.
"""

import argparse
import ast
from dataclasses import dataclass
from typing import Any, TypeVar

from mace_train.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Argument:
    """One argument of mace_run_train."""

    name: str
    default: Any
    ours: str = ""
    """Our settings, such as ``train: optimizer.lr``; empty if there is none."""
    instead: str = ""
    """Why there is none, or what to do."""
    alias: str = ""
    kind: str = ""
    """flag (no value), bool (a word such as True), or empty: as the default."""

    @property
    def of_flag(self) -> bool:
        """The value that a flag sets: the two that are on by default are switched off by it."""
        return not self.default or self.name == "amsgrad"


_RATIOS = "batching.head_sampling_ratios={HEAD: N} repeats the structures of a head"
_FINE_TUNING = "choose the structures to replay beforehand, as a file of their own"
_POLAR = "for the models PolarMACE, MACELES and those of dipoles, which are not here"
_ONE_FOLDER = "everything lies in output"
_FIXED = "other values are another architecture, which is not here"
_FASTER = "kernels are compiled where possible: cluster.kernels"


def _rows() -> list[Argument]:
    a = Argument
    return [
        a("config", None, instead="the file that is translated"),
        a("name", None, "train: name"),
        a("seed", 123, "preprocess: seed; train: seed"),
        a("work_dir", ".", "preprocess: output; train: output"),
        a("log_dir", None, instead=_ONE_FOLDER),
        a("model_dir", None, instead=_ONE_FOLDER),
        a("checkpoints_dir", None, instead=_ONE_FOLDER),
        a("results_dir", None, instead=_ONE_FOLDER),
        a("downloads_dir", None, instead="nothing is downloaded"),
        a("device", "cpu", "train: cluster.device"),
        a("default_dtype", "float64", "train: default_dtype"),
        a("distributed", False, instead="torchrun, srun and mpiexec are detected", kind="flag"),
        a("launcher", "slurm", instead="torchrun, srun and mpiexec are detected"),
        a("log_level", "INFO", instead="there is one level"),
        a("plot", True, instead="learning.png is always drawn", kind="bool"),
        a("plot_frequency", 0, instead="learning.png is drawn at every validation"),
        a("plot_interaction_e", False, instead="parity plots show total energies", kind="bool"),
        a("error_table", "PerAtomRMSE", instead="evaluate prints RMSE and MAE of everything"),
        a("model", "MACE", "train: model.model"),
        a("r_max", 5.0, "preprocess: r_max"),
        a("radial_type", "bessel", "train: model.radial_type"),
        a("num_radial_basis", 8, "train: model.num_radial_basis"),
        a("num_cutoff_basis", 5, "train: model.num_cutoff_basis"),
        a("pair_repulsion", False, "train: model.pair_repulsion", kind="flag"),
        a("distance_transform", "None", "train: model.distance_transform"),
        a("apply_cutoff", True, "train: model.apply_cutoff", kind="bool"),
        a("use_last_readout_only", False, "train: model.use_last_readout_only", kind="bool"),
        a("use_embedding_readout", False, "train: model.use_embedding_readout", kind="bool"),
        a("interaction", "RealAgnosticResidualInteractionBlock", "train: model.interaction"),
        a(
            "interaction_first",
            "RealAgnosticResidualInteractionBlock",
            "train: model.interaction_first",
        ),
        a("max_ell", 3, "train: model.max_ell"),
        a("correlation", 3, "train: model.correlation"),
        a("use_reduced_cg", False, instead="weights of all paths are kept", kind="bool"),
        a("use_so3", False, instead=_FIXED, kind="bool"),
        a("use_agnostic_product", False, "train: model.use_agnostic_product", kind="bool"),
        a("num_interactions", 2, "train: model.num_interactions"),
        a("MLP_irreps", "16x0e", "train: model.MLP_irreps"),
        a("radial_MLP", "[64, 64, 64]", "train: model.radial_MLP"),
        a("hidden_irreps", None, "train: model.num_channels; train: model.max_L"),
        a("edge_irreps", None, "train: model.edge_irreps"),
        a("use_edge_irreps_first", False, "train: model.use_edge_irreps_first", kind="bool"),
        a("num_channels", None, "train: model.num_channels"),
        a("max_L", None, "train: model.max_L"),
        a("gate", "silu", "train: model.gate"),
        a("kspace_cutoff_factor", 1.5, instead=_POLAR),
        a("atomic_multipoles_max_l", 0, instead=_POLAR),
        a("atomic_multipoles_smearing_width", 1.0, instead=_POLAR),
        a("field_feature_max_l", 0, instead=_POLAR),
        a("field_feature_widths", "[1.0]", instead=_POLAR),
        a("field_feature_norms", None, instead=_POLAR),
        a("num_recursion_steps", 1, instead=_POLAR),
        a("field_si", False, instead=_POLAR, kind="bool"),
        a("include_electrostatic_self_interaction", False, instead=_POLAR, kind="bool"),
        a("add_local_electron_energy", False, instead=_POLAR, kind="bool"),
        a("quadrupole_feature_corrections", False, instead=_POLAR, kind="bool"),
        a("return_electrostatic_potentials", False, instead=_POLAR, kind="bool"),
        a("field_norm_factor", 0.02, instead=_POLAR),
        a("fixedpoint_update_config", None, instead=_POLAR),
        a("field_readout_config", None, instead=_POLAR),
        a("scaling", "rms_forces_scaling", "train: model.scaling"),
        a("avg_num_neighbors", 1.0, instead="taken from the training data"),
        a("compute_avg_num_neighbors", True, instead="always", kind="bool"),
        a("compute_stress", False, instead="wherever the loss needs it, and evaluate", kind="bool"),
        a("compute_forces", True, instead="wherever the loss needs them", kind="bool"),
        a("compute_polarizability", False, instead=_POLAR, kind="bool"),
        a("compute_atomic_dipole", False, instead=_POLAR, kind="bool"),
        a("train_file", None, "preprocess: data.train_file"),
        a("valid_file", None, "preprocess: data.valid_file"),
        a("valid_fraction", 0.1, "preprocess: data.valid_fraction"),
        a("test_file", None, "preprocess: data.test_file"),
        a("test_dir", None, "preprocess: data.test_file"),
        a("multi_processed_test", False, instead="test files are of one kind", kind="bool"),
        a("num_workers", 0, "train: cluster.num_workers"),
        a("pin_memory", True, instead="chosen by the device", kind="bool"),
        a("atomic_numbers", None, instead="the elements of the data"),
        a("mean", None, instead="taken from the training data"),
        a("std", None, instead="taken from the training data"),
        a("statistics_file", None, instead="preprocess writes statistics.json"),
        a("les_arguments", None, instead=_POLAR),
        a("E0s", None, "preprocess: data.E0s"),
        a("pseudolabel_replay", False, instead=_FINE_TUNING, kind="bool"),
        a("pseudolabel_replay_compute_stress", False, instead=_FINE_TUNING, kind="bool"),
        a("foundation_filter_elements", True, instead=_FINE_TUNING, kind="bool"),
        a("heads", None, "preprocess: data.train_file; preprocess: data.E0s"),
        a("multiheads_finetuning", True, "preprocess: data.train_file", kind="bool"),
        a("foundation_head", None, "train: foundation.head"),
        a("weight_pt_head", 1.0, "train: loss.head_weights"),
        a("real_pt_data_ratio_threshold", 0.1, instead=_RATIOS),
        a("num_samples_pt", 10000, instead=_FINE_TUNING),
        a(
            "force_mh_ft_lr",
            False,
            "train: optimizer.lr; train: ema; train: ema_decay",
            kind="bool",
        ),
        a("subselect_pt", "random", instead=_FINE_TUNING),
        a("filter_type_pt", "none", instead=_FINE_TUNING),
        a(
            "allow_random_padding_pt",
            True,
            instead=_FINE_TUNING,
            alias="disallow_random_padding_pt",
            kind="flag",
        ),
        a("pt_train_file", None, "preprocess: data.train_file"),
        a("pt_valid_file", None, "preprocess: data.valid_file"),
        a("foundation_model_elements", False, "train: foundation.elements", kind="bool"),
        a("keep_isolated_atoms", False, "preprocess: data.keep_isolated_atoms", kind="bool"),
        a("lora", False, "train: foundation.lora_rank", kind="bool"),
        a("lora_rank", 4, "train: foundation.lora_rank"),
        a("lora_alpha", 1.0, "train: foundation.lora_alpha"),
        a("energy_key", "REF_energy", "preprocess: data.energy_key"),
        a("forces_key", "REF_forces", "preprocess: data.forces_key"),
        a("virials_key", "REF_virials", "preprocess: data.virials_key"),
        a("stress_key", "REF_stress", "preprocess: data.stress_key"),
        a("dipole_key", "dipole", instead=_POLAR),
        a("polarizability_key", "polarizability", instead=_POLAR),
        a("head_key", "head", "preprocess: data.head_key"),
        a("charges_key", "REF_charges", instead=_POLAR),
        a("elec_temp_key", "elec_temp", "preprocess: data.info_keys"),
        a("total_spin_key", "total_spin", "preprocess: data.info_keys"),
        a("total_charge_key", "total_charge", "preprocess: data.info_keys"),
        a(
            "embedding_specs",
            None,
            "train: model.embedding_specs; preprocess: data.info_keys; preprocess: "
            "data.arrays_keys; preprocess: data.input_defaults",
        ),
        a("skip_evaluate_heads", "pt_head", instead="evaluate is a command of its own"),
        a("loss", "weighted", "train: loss.loss; train: weights"),
        a("forces_weight", 100.0, "train: loss.forces_weight"),
        a(
            "swa_forces_weight",
            100.0,
            "train: stage_two.forces_weight",
            alias="stage_two_forces_weight",
        ),
        a("energy_weight", 1.0, "train: loss.energy_weight"),
        a(
            "swa_energy_weight",
            1000.0,
            "train: stage_two.energy_weight",
            alias="stage_two_energy_weight",
        ),
        a("virials_weight", 1.0, "train: loss.virials_weight"),
        a(
            "swa_virials_weight",
            10.0,
            "train: stage_two.virials_weight",
            alias="stage_two_virials_weight",
        ),
        a("stress_weight", 1.0, "train: loss.stress_weight"),
        a(
            "swa_stress_weight",
            10.0,
            "train: stage_two.stress_weight",
            alias="stage_two_stress_weight",
        ),
        a("dipole_weight", 1.0, instead=_POLAR),
        a("swa_dipole_weight", 1.0, instead=_POLAR, alias="stage_two_dipole_weight"),
        a(
            "swa_polarizability_weight",
            1.0,
            instead=_POLAR,
            alias="stage_two_polarizability_weight",
        ),
        a("polarizability_weight", 1.0, instead=_POLAR),
        a("config_type_weights", '{"Default":1.0}', "train: loss.config_type_weights"),
        a("huber_delta", 0.01, "train: loss.huber_delta"),
        a("optimizer", "adam", "train: optimizer.optimizer"),
        a("beta", 0.9, "train: optimizer.beta"),
        a("beta1_schedulefree", 0.9, "train: optimizer.beta"),
        a("beta2_schedulefree", 0.98, "train: optimizer.beta2"),
        a("batch_size", 10, "train: batching.batch_size"),
        a("valid_batch_size", 10, "train: batching.valid_batch_size"),
        a("lr", 0.01, "train: optimizer.lr"),
        a("swa_lr", 0.001, "train: stage_two.lr", alias="stage_two_lr"),
        a("weight_decay", 5e-07, "train: optimizer.weight_decay"),
        a(
            "lr_params_factors",
            '{"embedding_lr_factor": 1.0, "interactions_lr_factor": 1.0, '
            '"products_lr_factor": 1.0, "readouts_lr_factor": 1.0}',
            "train: optimizer.lr_params_factors",
        ),
        a("freeze", None, "train: optimizer.freeze", kind="int"),
        a("amsgrad", True, "train: optimizer.amsgrad", kind="flag"),
        a("scheduler", "ReduceLROnPlateau", "train: scheduler.scheduler"),
        a("lr_factor", 0.8, "train: scheduler.lr_factor"),
        a("scheduler_patience", 50, "train: scheduler.scheduler_patience"),
        a("lr_scheduler_gamma", 0.9993, "train: scheduler.lr_scheduler_gamma"),
        a("swa", False, "train: stage_two.enabled", alias="stage_two", kind="flag"),
        a("start_swa", None, "train: stage_two.start", alias="start_stage_two", kind="int"),
        a("lbfgs", False, "train: optimizer.optimizer", kind="flag"),
        a("ema", False, "train: ema", kind="flag"),
        a("ema_decay", 0.99, "train: ema_decay"),
        a("max_num_epochs", 2048, "train: max_num_epochs"),
        a("patience", 2048, "train: patience"),
        a("foundation_model", None, "import: model_file; train: foundation.checkpoint"),
        a("foundation_model_kwargs", "{}", instead="for models that mace-torch downloads"),
        a("foundation_model_readout", True, instead="readouts are kept", kind="flag"),
        a("eval_interval", 1, "train: eval_interval"),
        a("keep_checkpoints", False, instead="checkpoints.keep=N", kind="flag"),
        a("save_all_checkpoints", False, "train: checkpoints.keep_every", kind="flag"),
        a("restart_latest", False, "train: restart_latest", kind="flag"),
        a("save_cpu", False, instead="checkpoints belong to no device", kind="flag"),
        a("clip_grad", 10.0, "train: clip_grad"),
        a("dry_run", False, instead="preprocess --dry-run; train --cfg job", kind="flag"),
        a("enable_cueq", False, instead=_FASTER, kind="bool"),
        a("only_cueq", False, instead=_FASTER, kind="bool"),
        a("enable_oeq", False, instead=_FASTER, kind="bool"),
        a("wandb", False, "train: logger.wandb", kind="flag"),
        a("wandb_dir", None, instead=_ONE_FOLDER),
        a("wandb_project", "", "train: logger.wandb_project"),
        a("wandb_entity", "", "train: logger.wandb_entity"),
        a("wandb_name", "", "train: logger.wandb_name"),
        a(
            "wandb_log_hypers",
            [
                *("num_channels", "max_L", "correlation", "lr", "swa_lr", "weight_decay"),
                *("batch_size", "max_num_epochs", "start_swa", "energy_weight", "forces_weight"),
            ],
            instead="all settings are logged",
        ),
    ]


ARGUMENTS: dict[str, Argument] = {row.name: row for row in _rows()}


def table() -> str:
    """The table in Markdown: names that have an equal, then the others by reason."""
    lines = ["| mace_run_train | default | mace-train |", "|---|---|---|"]
    reasons: dict[str, list[str]] = {}
    for name, row in ARGUMENTS.items():
        both = f"`{name}`" + (f", `{row.alias}`" if row.alias else "")
        if row.ours:
            default = str(row.default).replace("|", "\\|")
            lines.append(f"| {both} | {default} | {row.ours} |")
        else:
            reasons.setdefault(row.instead, []).append(both)
    lines += ["", "Without an equal:", ""]
    lines += [f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """A parser of mace_run_train's command line that leaves out what is not given."""
    result = argparse.ArgumentParser(
        prog="mace_run_train", add_help=False, argument_default=argparse.SUPPRESS
    )
    for name, argument in ARGUMENTS.items():
        options = [f"--{option}" for option in (name, argument.alias) if option]
        if argument.kind == "flag":
            result.add_argument(*options, dest=name, action="store_const", const=argument.of_flag)
        else:
            several = "*" if isinstance(argument.default, list) else None
            result.add_argument(*options, dest=name, nargs=several)
    return result


def literal(name: str, value: Any, kind: type[T]) -> T:
    """A list or mapping, which may be written as text."""
    what, such = ("a mapping", "{'a': 1}") if kind is dict else ("a list", "[64, 64]")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise InputError(f"--{name}={value}: cannot be read as {what}; give {such}") from None
    if not isinstance(value, kind):
        raise InputError(f"--{name}={value!r}: give {what}, such as {such}")
    return value
