"""Put the passages of a store's version on a Qdrant server, from a Ray cluster."""

from __future__ import annotations

import math
import os
import socket
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from lclm_rag.errors import PassageIndexError
from lclm_rag.indexing.collection import require_reachable
from lclm_rag.indexing.points import OnPut, ServerPoints, put_rows
from lclm_rag.ingestion.ray.faults import FURTHER_TRIES
from lclm_rag.store import LatentStore

__all__ = ["ENVIRONMENT", "PutFragments", "gpu_share", "put_on_ray", "reach_from_ray"]

ENVIRONMENT = ("QDRANT_API_KEY", "QDRANT_GRPC_PORT")
"""Variables that workers take from the driver: how the server is reached."""

_LEAST_SHARE = 0.25
"""The least share of a GPU: each process that uses one needs half a gigabyte of it for itself."""

_CPUS = 0.5
"""The CPUs that a writer asks Ray for."""


class PutFragments:
    """An actor with an embedder and a connection: puts rows of fragments on the server.

    Args:
        points: The collection, without rows.
        environment: Environment variables to set.
        device: Where the embedder computes, "cuda" or "cpu".
        threads: The threads of an embedder on a CPU.
    """

    def __init__(
        self, points: ServerPoints, environment: dict[str, str], device: str, threads: int
    ) -> None:
        os.environ.update(environment)
        if points.embedder is not None:
            import torch

            torch.set_num_threads(threads)
        self._index = points.connect(device)
        self._store = LatentStore.open_for_worker(points.store, points.version)
        # Fragments come by name; points carry their numbers, which the version's lists know.
        deque(self._store.entries(), maxlen=0)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Put some fragments' rows there. Doing so again does no harm.

        Args:
            batch: The names of fragments, in the column `fragment`, and their rows, int64 as bytes, in the
                column `rows`.

        Returns:
            The names alone.
        """
        for name, rows in zip(batch["fragment"], batch["rows"], strict=True):
            put_rows(self._index, self._store, str(name), np.frombuffer(rows, np.int64))
        return {"fragment": batch["fragment"]}


def put_on_ray(
    ray: Any,
    points: ServerPoints,
    on_put: OnPut,
    *,
    writers: int,
    gpus: float | None,
    threads: int,
) -> None:
    """Let actors put passages on the server, each actor fragment after fragment.

    Args:
        ray: The module, connected to the cluster.
        points: The passages and the server.
        on_put: Called with the name of each fragment that is there.
        writers: The most actors.
        gpus: The GPUs of each actor that holds an embedder; None for what each would get of the cluster's.
        threads: The threads of an embedder on a CPU.
    """
    share, cpus = 0.0, _CPUS
    if points.embedder is not None:
        there = ray.cluster_resources().get("GPU", 0.0)
        share = gpu_share(there, writers) if gpus is None else gpus
        if share and there:
            writers = max(1, min(writers, math.floor(there / share)))
        cpus = _CPUS if share else threads
    # A block for each fragment, so that a task gets the rows of its own and no others.
    rows = [{"fragment": name, "rows": each.tobytes()} for name, each in points.rows]
    fragments = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
    done = fragments.map_batches(
        PutFragments,
        batch_size=1,
        fn_constructor_args=(
            replace(points, rows=()),
            _environment(),
            "cuda" if share else "cpu",
            threads,
        ),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=writers),
        num_cpus=cpus,
        num_gpus=share or None,
        max_restarts=FURTHER_TRIES,
        max_task_retries=FURTHER_TRIES,
    )
    for row in done.iter_rows():
        on_put(str(row["fragment"]))


def reach_from_ray(ray: Any, url: str) -> None:
    """Ask the server something from a machine of the cluster.

    Args:
        ray: The module, connected to the cluster.
        url: The server's URL.
    """
    ray.get(ray.remote(_reach).options(num_cpus=_CPUS).remote(url, _environment()))


def _reach(url: str, environment: dict[str, str]) -> None:
    # Not for good: the process does other tasks afterwards.
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        require_reachable(url)
    except PassageIndexError as error:
        raise PassageIndexError(
            f"From {socket.gethostname()}, of the Ray cluster: {error}"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _environment() -> dict[str, str]:
    """The driver's variables, passed as an argument: Ray shows a runtime environment to whoever looks."""
    return {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)}


def gpu_share(gpus: float, writers: int) -> float:
    """The share of a GPU that each writer's embedder gets.

    Args:
        gpus: The cluster's GPUs.
        writers: The most writers.

    Returns:
        0 without GPUs; otherwise at least a quarter, and at most a whole one.
    """
    if not gpus:
        return 0.0
    # Ray counts in ten-thousandths; rounded up, the last writer would find too little.
    return min(1.0, max(_LEAST_SHARE, math.floor(gpus / writers * 10_000) / 10_000))
