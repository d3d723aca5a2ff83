"""Sharing tasks among processes of one machine or MPI ranks of many."""
