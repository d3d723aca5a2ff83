"""Independent tasks: ``task_pool`` runs them in worker ``processes`` or over ``mpi`` ranks."""
