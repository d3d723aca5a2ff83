"""Exchange with mace-torch: models both ways, and settings of mace_run_train into ours."""
