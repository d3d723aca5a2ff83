"""Many trainings: ``jobs`` -> ``job_status`` of each -> ``sweep`` (summary); ``tune`` searches."""
