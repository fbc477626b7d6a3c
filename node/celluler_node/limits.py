"""What workers of this node may take, as its configuration says."""

from __future__ import annotations

from dataclasses import replace

from celluler.views import Hardware
from celluler_node.config import NodeConfig
from celluler_node.processes.words import Limits
from celluler_node.serving.loading import ServingRules

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


def serving_limits(config: NodeConfig) -> Limits:
    """Of a worker that serves a model."""
    return replace(worker_limits(config), threads=config.serve_threads)


def serving_rules(config: NodeConfig, hardware: Hardware) -> ServingRules:
    """How models are kept loaded. Where nothing is said of memory, most of what this machine may use."""
    usable = (hardware.memory_mb << 20) * 3 // 4
    return ServingRules(
        memory_bytes=config.serve_memory_bytes or usable,
        idle_s=config.serve_idle_s,
        batch=config.serve_batch,
        queue=config.serve_queue,
        preload=config.serve_preload if "serve" in config.roles else (),
    )
