"""Kernels for CPUs: C++ emitted from a program, compiled by the host's compiler, run in threads."""
