"""Bad shards, settings and checkpoints: every case returns the arguments of a failing command."""

import json

import h5py
from ase.build import bulk
from ase.io import read, write

from tests.conftest import labelled, run_command

E0S = {1: 3.0, 7: 5.0, 8: 4.0, 13: 3.0}  # eV, other ones than EMT's


def truncated_shard(place):
    data = place.copy_prepared()
    shard = sorted((data / "train").glob("*.h5"))[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return place.train(data=data)


def shard_of_another_version(place):
    data = place.copy_prepared()
    with h5py.File(sorted((data / "train").glob("*.h5"))[0], "r+") as handle:
        handle.attrs["format_version"] = 999
    return place.train(data=data)


def shard_is_missing(place):
    data = place.copy_prepared()
    sorted((data / "train").glob("*.h5"))[0].unlink()
    return place.train(data=data)


def shard_is_not_hdf5(place):
    data = place.copy_prepared()
    sorted((data / "train").glob("*.h5"))[0].write_text("hello")
    return place.train(data=data)


def statistics_are_missing(place):
    data = place.copy_prepared()
    (data / "statistics.json").unlink()
    return place.train(data=data)


def statistics_of_other_data(place):
    data = place.copy_prepared()
    path = data / "statistics.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["dataset_hash"] = "0" * 64
    path.write_text(json.dumps(content))
    return place.train(data=data)


def data_folder_is_not_there(place):
    return place.train(data=place.folder / "nowhere")


def r_max_differs_from_the_graph(place):
    return place.train("model.r_max=5.0")


def structure_has_too_many_atoms(place):
    return place.train("batching.max_atoms=5")


def structure_has_too_many_edges(place):
    return place.train("batching.max_atoms=50", "batching.max_edges=10")


def unknown_key(place):
    return place.train("loss.force_weight=10")


def unknown_key_with_plus(place):
    return place.train("+optimizer.momentum=0.9")


def wrong_type(place):
    return place.train("optimizer.lr=fast")


def value_out_of_range(place):
    return place.train("optimizer.lr=-0.1")


def learning_rate_is_infinite(place):
    return place.train("optimizer.lr=inf")


def seed_of_more_than_64_bits(place):
    return place.train(f"seed={2**64}")


def negative_seed(place):
    return place.train("seed=-1")


def more_threads_than_any_host(place):
    return place.train("cluster.num_threads=100000")


def more_threads_than_this_host(place):
    return place.train("cluster.num_threads=4096")


def more_workers_than_this_host(place):
    return place.preprocess(place.xyz, "workers=4096")


def channels_beyond_reason(place):
    return place.train("model.num_channels=1000000000")


def model_larger_than_any_memory(place):
    return place.train("model.num_channels=65536")


def degrees_beyond_reason(place):
    return place.train("model.max_L=50", "model.max_ell=50")


def weights_of_structures_are_zero(place):
    structures = [*place.weighted(0.0), *place.weighted(1.0, config_forces_weight=0.0)]
    for atoms in structures:
        atoms.info["config_energy_weight"] = 0.0
    return place.train(data=place.prepare(structures))


def weights_of_validation_are_zero(place):
    data = place.prepare(place.weighted(1.0), place.weighted(0.0))
    return place.train(data=data)


def weights_vanish_in_single_precision(place):
    return place.train(data=place.prepare(place.weighted(1e-300)))


def stage_two_has_no_labels(place):
    data = place.folder / "molecules"
    molecules = [a for a in read(place.xyz, ":") if a.info["config_type"] != "crystal"]
    write(place.folder / "molecules.xyz", molecules, format="extxyz")
    run_command(
        *["preprocess", f"data.train_file={place.folder / 'molecules.xyz'}", f"output={data}"]
    )
    more = ["stage_two.energy_weight=0", "stage_two.forces_weight=0", "stage_two.stress_weight=1"]
    more += ["loss=stress", "stage_two.enabled=true", "max_num_epochs=4"]
    return place.train(*more, data=data)


def unknown_group_choice(place):
    return place.train("model=gigantic")


def typo_in_a_yaml(place):
    (place.folder / "exp.yaml").write_text("defaults: [train, _self_]\nmax_epochs: 3\n")
    return place.train("--config-dir", str(place.folder), "--config-name", "exp")


def broken_yaml(place):
    (place.folder / "exp.yaml").write_text("defaults: [train, _self_\nname: [x\n")
    return place.train("--config-dir", str(place.folder), "--config-name", "exp")


def required_setting_is_missing(place):
    return ["train", f"output={place.output}"]


def unknown_command(place):
    return ["trian"]


def malformed_override(place):
    return place.train("seed==3")


def output_holds_a_training(place):
    return [*place.train(), f"output={place.copy_trained()}"]


def resume_with_another_model(place):
    trained = place.copy_trained()
    return [*place.train("model.num_channels=8", "restart_latest=true"), f"output={trained}"]


def resume_with_other_e0s(place):
    other = place.folder / "other"
    settings = [f"data.train_file={place.xyz}", f"data.E0s={E0S}", "r_max=4.0"]
    settings += ["data.valid_fraction=0.25", "structures_per_shard=9", f"output={other}"]
    run_command("preprocess", *settings)
    trained = place.copy_trained()
    return [*place.train("restart_latest=true", data=other), f"output={trained}"]


def resume_with_another_scale(place):
    trained = place.copy_trained()
    settings = ["model.scaling=no_scaling", "restart_latest=true"]
    return [*place.train(*settings), f"output={trained}"]


def output_is_a_file(place):
    place.output.write_text("mine")
    return place.train()


def evaluation_into_a_file(place):
    place.output.write_text("mine")
    return place.evaluate(f"test_file={place.xyz}")


def balance_into_a_file(place):
    place.output.write_text("mine")
    return ["balance", f"data_dir={place.prepared}", f"output={place.output}"]


def weights_of_an_unknown_config_type(place):
    return place.train("loss.config_type_weights={crystall: 2}")


def weights_that_are_no_mapping(place):
    return place.train("loss.config_type_weights=[1,2]")


def nothing_has_a_weight(place):
    return place.train("loss.config_type_weights={crystal: 0, molecule: 0}")


def no_label_for_the_loss(place):
    data = place.folder / "molecules"
    structures = [a for a in read(place.xyz, ":") if a.info["config_type"] != "crystal"]
    path = place.folder / "molecules.xyz"
    write(path, structures, format="extxyz")
    run_command("preprocess", f"data.train_file={path}", "r_max=4.0", f"output={data}")
    return place.train("loss=stress", "loss.energy_weight=0", "loss.forces_weight=0", data=data)


def name_that_hydra_cannot_read(place):
    return ["preprocess", "data.train_file=a (1).xyz", f"output={place.output}"]


def word_without_a_key(place):
    return place.train("small.xyz")


def preprocess_in_two_ranks(place):
    place.environment["WORLD_SIZE"] = "2"
    return ["preprocess", f"data.train_file={place.xyz}", f"output={place.output}"]


def sweep_in_two_ranks(place):
    place.environment["WORLD_SIZE"] = "2"
    return place.train("--multirun", "seed=1,2")


def resume_with_other_data(place):
    other = place.folder / "other"
    run_command(
        *["preprocess", f"data.train_file={place.xyz}", "r_max=4.0", f"output={other}", "seed=7"]
    )
    trained = place.copy_trained()
    return [*place.train("restart_latest=true", data=other), f"output={trained}"]


def resume_from_a_truncated_checkpoint(place):
    trained = place.copy_trained()
    for path in (trained / "checkpoints").glob("step-*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    return [*place.train("restart_latest=true"), f"output={trained}"]


def evaluate_without_a_checkpoint(place):
    settings = [f"checkpoint={place.folder}", f"test_file={place.xyz}", f"output={place.output}"]
    return ["evaluate", *settings]


def evaluate_something_that_is_no_checkpoint(place):
    settings = [f"checkpoint={place.xyz}", f"test_file={place.xyz}", f"output={place.output}"]
    return ["evaluate", *settings]


def evaluate_an_unknown_element(place):
    copper = place.folder / "copper.xyz"
    write(copper, [labelled(bulk("Cu"), "crystal")], format="extxyz")
    return place.evaluate(f"test_file={copper}")


def evaluate_nothing(place):
    return place.evaluate()


def evaluate_a_split_that_is_not_there(place):
    return place.evaluate(f"data_dir={place.prepared}", "split=test")


def evaluate_another_r_max(place):
    other = place.folder / "other"
    run_command("preprocess", f"data.train_file={place.xyz}", "r_max=3.0", f"output={other}")
    return place.evaluate(f"data_dir={other}")


def balance_with_a_capacity_too_small(place):
    return ["balance", f"data_dir={place.prepared}", "batching.max_atoms=3"]


# case -> words that the message must have (what, where, got, remedy)
CASES = {
    truncated_shard: ("shard-00000.h5",),
    shard_of_another_version: ("shard-00000.h5", "999"),
    shard_is_missing: ("shard-00000.h5",),
    shard_is_not_hdf5: ("shard-00000.h5",),
    statistics_are_missing: ("statistics.json",),
    statistics_of_other_data: ("statistics.json", "preprocess again"),
    data_folder_is_not_there: ("nowhere",),
    r_max_differs_from_the_graph: ("5.0", "4.0", "preprocess"),
    structure_has_too_many_atoms: ("max_atoms", "5"),
    structure_has_too_many_edges: ("max_edges", "10"),
    unknown_key: ("loss.force_weight", "did you mean loss.forces_weight"),
    unknown_key_with_plus: ("optimizer.momentum", "optimizer.beta"),
    wrong_type: ("optimizer.lr", "fast", "Float"),
    value_out_of_range: ("optimizer.lr", "greater than 0"),
    learning_rate_is_infinite: ("optimizer.lr=inf", "at most 1000"),
    seed_of_more_than_64_bits: ("seed=18,446,744,073,709,551,616", "64 bits"),
    negative_seed: ("seed=-1", "at least 0"),
    more_threads_than_any_host: ("cluster.num_threads=100000", "4096", "cores"),
    more_threads_than_this_host: ("cluster.num_threads=4096", "this host has"),
    more_workers_than_this_host: ("workers=4096", "this host has"),
    channels_beyond_reason: ("model.num_channels=1,000,000,000", "65536"),
    model_larger_than_any_memory: ("model.num_channels=65536", "weights", "GB"),
    degrees_beyond_reason: ("model.max_L=50", "at most 11"),
    weights_of_structures_are_zero: ("nothing to train on", "config_weight"),
    weights_of_validation_are_zero: ("nothing to validate on", "config_weight"),
    weights_vanish_in_single_precision: ("nothing to train on",),
    stage_two_has_no_labels: ("nothing to train on in stage two", "stress"),
    unknown_group_choice: ("gigantic", "small", "medium", "large"),
    typo_in_a_yaml: ("max_epochs", "max_num_epochs"),
    broken_yaml: ("exp.yaml",),
    required_setting_is_missing: ("data_dir",),
    unknown_command: ("trian", "train"),
    malformed_override: ("=",),
    output_holds_a_training: ("restart_latest=true",),
    resume_with_another_model: ("another model", "num_channels: 4 there, 8 now"),
    resume_with_other_e0s: ("another model", "E0s"),
    resume_with_another_scale: ("another model", "scaling"),
    output_is_a_file: ("output", "cannot make this folder"),
    evaluation_into_a_file: ("output", "cannot make this folder"),
    balance_into_a_file: ("output", "cannot make this folder"),
    weights_of_an_unknown_config_type: ("crystall", "crystal, molecule"),
    weights_that_are_no_mapping: ("config_type_weights", "bulk: 2"),
    nothing_has_a_weight: ("nothing to train on",),
    no_label_for_the_loss: ("nothing to train on", "stress"),
    name_that_hydra_cannot_read: ("quoted twice", "a (1).xyz"),
    word_without_a_key: ("key=value",),
    preprocess_in_two_ranks: ("workers=N",),
    sweep_in_two_ranks: ("--multirun", "--job 0"),
    resume_with_other_data: ("other data",),
    resume_from_a_truncated_checkpoint: ("no checkpoint", "truncated", "choose another output"),
    evaluate_without_a_checkpoint: ("best.safetensors",),
    evaluate_something_that_is_no_checkpoint: ("train.xyz", "safetensors"),
    evaluate_an_unknown_element: ("copper.xyz", "29"),
    evaluate_nothing: ("test_file", "data_dir"),
    evaluate_a_split_that_is_not_there: ("test",),
    evaluate_another_r_max: ("3.0", "4.0"),
    balance_with_a_capacity_too_small: ("max_atoms", "3"),
}
