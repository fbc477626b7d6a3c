"""What a worker of this node may take, as its configuration says."""

from __future__ import annotations

from celluler_node.config import NodeConfig
from celluler_node.processes.words import Limits

WORKER_NICENESS = 5
"""A model at work must not make the node late: a peer that does not answer is taken for dead."""


def worker_limits(config: NodeConfig) -> Limits:
    """Of every worker of this node. Time is limited call by call, by whoever asks."""
    disk = config.worker_disk_bytes
    return Limits(
        config.worker_memory_bytes,
        file_bytes=disk,
        disk_bytes=disk,
        threads=config.worker_threads,
        niceness=WORKER_NICENESS,
    )
