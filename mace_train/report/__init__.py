"""``mace-train report``: ``run_folder``, ``error_tables`` -> ``plots`` -> ``page`` (one file)."""
