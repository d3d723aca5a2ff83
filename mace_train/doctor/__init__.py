"""``mace-train doctor``: checks of ``environment`` and ``network`` -> results -> PASS or FAIL."""
