"""Compiles CUDA with NVRTC, without a CUDA toolkit or a GPU, and keeps the results in the cache.

The packages of the extra ``cuda`` are imported here only, and only when something is compiled. A
cubin is determined by its source, the architecture, the version of NVRTC and the options; there is
no fast-math among them, so that results agree with those of the other backends to rounding.
"""

import io
from functools import cache
from pathlib import Path
from threading import Lock

from mace_train.ops.codegen.kernel_cache import built, content

_IMPORTING = Lock()  # cuda.core fails where two threads import it first
OPTIONS = {"std": "c++17", "ptxas_options": ["-v"]}  # ptxas reports registers and spills


@cache
def why_missing() -> str | None:
    """Why nothing can be compiled, or None."""
    try:
        with _IMPORTING:
            import cuda.core  # noqa: F401

        version()
    # cuda-pathfinder has an error class of its own for a library that it does not find
    except (ImportError, RuntimeError, OSError) as error:
        return str(error).split("\n", 1)[0] or type(error).__name__
    return None


@cache
def version() -> str:
    """NVRTC's version, such as 13.0."""
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    _check(error)
    return f"{major}.{minor}"


@cache
def architectures() -> frozenset[str]:
    """What NVRTC compiles for, such as sm_90."""
    from cuda.bindings import nvrtc

    error, numbers = nvrtc.nvrtcGetSupportedArchs()
    _check(error)
    return frozenset(f"sm_{number}" for number in numbers)


def cubin(source: str, architecture: str, folder: Path) -> bytes:
    """The compiled source, from the cache if it is there."""
    identity = "\0".join([source, architecture, version(), repr(sorted(OPTIONS.items()))])

    def make(path: Path) -> None:
        path.write_bytes(compile_cubin(source, architecture)[0])

    return content(built(identity, ".cubin", folder, make))


def compile_cubin(source: str, architecture: str) -> tuple[bytes, str]:
    """The cubin and what ptxas said."""
    with _IMPORTING:
        from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    program = Program(source, "c++", ProgramOptions(arch=architecture, **OPTIONS))
    try:
        code = program.compile("cubin", logs=log)
    finally:
        program.close()
    return bytes(code.code), log.getvalue()


def _check(error: object) -> None:
    if int(error) != 0:  # type: ignore[call-overload]
        raise RuntimeError(f"NVRTC: {error}")
