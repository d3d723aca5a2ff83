"""Exchange with mace-torch: models both ways, and settings of mace_run_train into ours.

A model file -> ``subprocess_client`` (mace-torch in a process of its own) -> ``state_dict`` ->
``equivalence`` (both models predict the same) -> our checkpoint; export goes the other way.
"""
