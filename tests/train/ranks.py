"""Run a function on several gloo ranks, each a process of its own."""

import os
import random
import socket
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from mace_train.cli import main
from mace_train.distributed.world import World, open_world
from mace_train.settings import ClusterSettings

Function = Callable[..., Any]

# ranks are forked from a process that has imported what takes seconds, and nothing else
set_forkserver_preload(
    ["mace_train.train.train", "mace_train.train.learning_curves", "torch._dynamo"]
)


def run_ranks(
    n_ranks: int, function: Function, folder: Path, *arguments: Any, timeout_s: int = 240
) -> list[Any]:
    """``[function(world, *arguments) for each rank]``; results travel through ``folder``."""
    _start(n_ranks, _enter, n_ranks, function, str(folder), arguments, timeout_s)
    paths = [folder / f"rank-{n_ranks}-{rank}.pt" for rank in range(n_ranks)]
    return [torch.load(path, weights_only=False) for path in paths]


def run_command_on_ranks(n_ranks: int, *words: str) -> None:
    """``mace-train`` on every rank, as torchrun would start it, but sooner there."""
    _start(n_ranks, _run_command, words)


def _start(n_ranks: int, target: Callable[..., None], *arguments: Any) -> None:
    """``target(rank, *arguments)`` on every rank, with torchrun's environment."""
    environment = os.environ | {
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    multiprocessing.start_processes(
        _in_environment,
        args=(dict(environment), target, arguments),
        nprocs=n_ranks,
        start_method="forkserver",
    )


def _in_environment(
    rank: int, environment: dict[str, str], target: Callable[..., None], arguments: Any
) -> None:
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    target(rank, *arguments)


def free_port() -> int:
    """A port that nobody holds, below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _run_command(rank: int, words: tuple[str, ...]) -> None:
    main(list(words))


def _enter(
    rank: int,
    n_ranks: int,
    function: Function,
    folder: str,
    arguments: tuple[Any, ...],
    timeout_s: int,
) -> None:
    with open_world(ClusterSettings(device="cpu", timeout_s=timeout_s, num_threads=1)) as world:
        result = function(world, *arguments)
    torch.save(result, Path(folder) / f"rank-{n_ranks}-{rank}.pt")


def collectives(world: World) -> tuple[list[float], str, list[int], int]:
    """What the collectives of World give on this rank."""
    total = world.sum(torch.tensor([1.0, float(world.rank)]))
    word = world.broadcast("from 0" if world.is_main else "mine")
    world.barrier()
    return total.tolist(), word, world.gather(10 * world.rank), world.size
