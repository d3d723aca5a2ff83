"""Independent tasks shared among processes of one machine or MPI ranks of many."""
