"""Many trainings of one purpose: the jobs of a sweep, guided search, and their results."""
