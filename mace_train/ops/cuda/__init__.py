"""Kernels for NVIDIA GPUs: CUDA emitted from a program, compiled by NVRTC, tuned, launched."""
