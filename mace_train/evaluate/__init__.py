"""Models on data sets: ``evaluate`` -> ``results``, ``parity_plot``; ``compare`` compares runs."""
