"""`celluler doctor`: looks for what is wrong with this node, and says what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import trio

from celluler.content.store import Store
from celluler.errors import CellulerError
from celluler.quantities import format_bytes
from celluler.views import Check
from celluler_node.bounded import bounded
from celluler_node.config import NodeConfig
from celluler_node.limits import worker_limits
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.worker_words import WORKER
from celluler_node.scratch import temporary_folder
from celluler_protocols.host import Host
from celluler_protocols.membership import Member, ask_members

PING_S = 5.0
LOW_DISK_BYTES = 1 << 30


async def examine(
    config: NodeConfig, host: Host, store: Store, members: tuple[Member, ...], member: bool
) -> tuple[Check, ...]:
    """Every check, in an order that names the cause before its effects. member: false at a light peer."""
    checks: tuple[Callable[[], Awaitable[Check]], ...] = (
        lambda: _key(config, member),
        lambda: _listening(host, member),
        lambda: _swarm(host, members),
        lambda: _store(config, store),
        lambda: _disk(config),
        _averager,
        lambda: _worker(config),
    )
    found = [await check() for check in checks]
    return tuple(replace(check, hint="") if check.ok else check for check in found)


async def _key(config: NodeConfig, member: bool) -> Check:
    mode = config.key_file.stat().st_mode & 0o777 if config.key_file.exists() else None
    if mode is None:
        return Check("key", not member, "no key file: this peer has a name for this command only", "celluler init")
    return Check("key", mode == 0o600, f"{config.key_file}, mode {mode:o}", f"chmod 600 {config.key_file}")


async def _listening(host: Host, member: bool) -> Check:
    if not member:
        return Check("listening", True, "a light peer listens on nothing")
    local = all(address.startswith(("/ip4/127.", "/ip6/::1/")) for address in host.addresses)
    detail = ", ".join(host.addresses) + (" (this machine only)" if local else "")
    return Check("listening", bool(host.addresses), detail, "celluler up --listen /ip4/0.0.0.0/tcp/4040")


async def _swarm(host: Host, members: tuple[Member, ...]) -> Check:
    """Asks the members themselves: no site of ours stands in between."""
    if not members:
        return Check("swarm", True, "no other member is known; celluler up --join ADDRESS joins one")
    answered = []
    for member in members[:8]:
        try:
            with bounded(PING_S, "ping", peer=member.peer):
                await ask_members(host, member.peer)
            answered.append(member)
        except CellulerError:
            continue
    asked = len(members[:8])
    return Check("swarm", bool(answered), f"{len(answered)} of {asked} members asked have answered", "celluler peer ls")


async def _store(config: NodeConfig, store: Store) -> Check:
    used = await trio.to_thread.run_sync(store.used_bytes)
    share = used / config.store_quota_bytes
    detail = f"{format_bytes(used)} of {format_bytes(config.store_quota_bytes)} used, {config.store_folder}"
    return Check("store", share < 0.95, detail, "raise store.quota in the configuration file")


async def _disk(config: NodeConfig) -> Check:
    folder = config.store_folder if config.store_folder.exists() else config.home
    free = shutil.disk_usage(folder).free
    return Check("disk", free >= LOW_DISK_BYTES, f"{format_bytes(free)} free at {folder}", "make room on this disk")


async def _averager() -> Check:
    """Looks for the daemon without importing hivemind, which must not come into this process."""
    found = importlib.util.find_spec("hivemind")
    folder = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    daemon = folder / "hivemind_cli" / "p2pd" if folder else None
    usable = daemon is not None and daemon.is_file() and os.access(daemon, os.X_OK)
    detail = f"p2pd: {daemon}" if daemon else "hivemind is not installed"
    return Check("averager", usable, detail, "pip install hivemind")


async def _worker(config: NodeConfig) -> Check:
    """Starts one: what the kernel cannot do is seen only from inside."""
    worker = replace(WORKER, confined=config.sandbox)
    limits = worker_limits(config)
    with temporary_folder("doctor") as folder:
        try:
            async with open_process(worker, limits=limits, scratch=folder) as child:
                isolation = child.isolation
        except CellulerError as error:
            return Check("worker", False, str(error), "raise worker.memory, or reinstall torch")
    if not config.sandbox:
        return Check("worker", True, "starts without its sandbox: worker.sandbox is off in the configuration file")
    if isolation.full:
        return Check("worker", True, "starts, fully isolated")
    return Check("worker", True, f"starts with reduced isolation: {'; '.join(isolation.missing)}")
