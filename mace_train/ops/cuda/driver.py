"""Loads cubins and launches kernels through the CUDA driver, beside torch.

Libraries belong to no context (``cuLibraryLoadData``), functions to the primary context of a
device, which is torch's. Launches go to torch's current stream of the device; nothing waits,
nothing is allocated, so launches can be captured in CUDA graphs.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def architecture(device: torch.device) -> str:
    """Such as sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def current_stream(device: torch.device) -> int:
    """The handle of torch's current stream."""
    return torch.cuda.current_stream(device).cuda_stream


class Function:
    """The kernel ``run`` of a cubin, ready on one device."""

    def __init__(self, cubin: bytes, device: torch.device) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._device = device
        number = self._call(driver.cuDeviceGet, device.index or 0)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, number)
        with self._current():
            library = self._call(driver.cuLibraryLoadData, cubin, None, None, 0, None, None, 0)
            kernel = self._call(driver.cuLibraryGetKernel, library, b"run")
            # loading is lazy by default, and must not happen during a capture
            self._function = self._call(driver.cuKernelGetFunction, kernel)

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: Sequence[int]) -> None:
        """Start it; arguments are 64-bit integers and addresses."""
        values = (ctypes.c_int64 * len(arguments))(*arguments)
        first = ctypes.addressof(values)
        addresses = range(first, first + ctypes.sizeof(values), 8)
        pointers = (ctypes.c_void_p * len(arguments))(*addresses)
        with self._current():
            self._call(
                self._driver.cuLaunchKernel,
                self._function,
                *grid,
                *(threads, 1, 1),
                0,  # bytes of dynamic shared memory
                current_stream(self._device),
                ctypes.addressof(pointers),
                0,
            )

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes the device's context current in this thread; autograd's threads may have none."""
        self._call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._driver.cuCtxPopCurrent)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The driver's answer; RuntimeError with its message if it is an error."""
        error, *results = function(*arguments)
        if int(error) != 0:
            _, text = self._driver.cuGetErrorString(error)
            name = getattr(function, "__name__", "CUDA driver")
            message = (text or b"").decode()
            raise RuntimeError(f"{name} on {self._device}: {error.name}: {message}")
        return results[0] if results else None
