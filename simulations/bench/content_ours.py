"""Our own fetch: over bulk from one and from three providers, over libp2p streams from one, and throttled.

Throttled: six providers of one content. Three keep to limits, one more is slow, one lies, and one is killed when 40 %
is there. What those four that survive gave, over what their limits allowed in that time with the burst that a limit
grants at its start, is how well they were used; nobody may give more than its limit and a tenth.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.content.disk import DiskStore
from celluler.content.rate import BURST_S
from simulations.bench.content_ways import MIB, Child, Content, Missing, Way

_MODULE = "simulations.bench.content_peer"
_QUOTA_BYTES = 1 << 40
_BULK_SHARE = 0.8
"""At least; the first few MiB come over libp2p while the bulk connection is being made."""
STEADY, SLOW, KILLED = (16_000_000, 12_000_000, 8_000_000), 1_000_000, 8_000_000
"""Limits in bytes a second."""
KILLED_AT = 0.4


class Failed(Exception):
    """Our own fetch did something else than what is to be measured."""


def make_store(content: Content) -> Path:
    """A provider's store that holds it; to be copied, since a store has one process."""
    folder = content.scratch / "store"
    store = DiskStore(folder, _QUOTA_BYTES)
    store.add(content.path, "blob")
    store.close()
    return folder


@contextmanager
def _peers(content: Content, store: Path) -> Iterator[_Peers]:
    with ExitStack() as stack:
        yield _Peers(content, store, stack)


class _Peers:
    """Providers with a copy of the store each, and the client."""

    def __init__(self, content: Content, store: Path, stack: ExitStack) -> None:
        self._content, self._store, self._stack = content, store, stack
        self._count = 0
        self.client = stack.enter_context(Child(_MODULE, "fetch", str(self._folder())))

    def provider(self, *options: str) -> Child:
        folder = self._folder()
        shutil.copytree(self._store, folder)
        return self._stack.enter_context(Child(_MODULE, "provide", str(folder), *options))

    def again(self, folder: Path, *options: str) -> Child:
        return self._stack.enter_context(Child(_MODULE, "provide", str(folder), *options))

    def _folder(self) -> Path:
        self._count += 1
        return self._content.scratch / f"peer{id(self):x}-{self._count}"


# --- as fast as it goes --------------------------------------------------------------------------------------------


@contextmanager
def open_ways(content: Content, store: Path) -> Iterator[Mapping[str, Way]]:
    with _peers(content, store) as peers:
        providers = [peers.provider() for _ in range(3)]
        addresses = [provider.about["address"] for provider in providers]
        root, mebibytes = providers[0].about["root"], content.size // MIB

        def ask(way: str, count: int) -> dict[str, Any]:
            return _ask(peers.client, way=way, addresses=addresses[:count], root=root, mebibytes=mebibytes)

        def bring(way: str, count: int) -> float:
            done = ask(way, count)
            if way == "bulk" and done["bulk_bytes"] < _BULK_SHARE * content.size:
                raise Failed(f"only {done['bulk_bytes']} of {content.size} bytes came by bulk")
            return float(done["seconds"])

        ask("bulk", 3)  # starts the bulk processes
        yield {
            "ours 1": lambda _: bring("bulk", 1),
            "ours 3": lambda _: bring("bulk", 3),
            "ours libp2p": lambda _: bring("stream", 1),
            "libp2p stream": lambda _: bring("bytes", 1),
        }


def _ask(client: Child, **order: Any) -> dict[str, Any]:
    try:
        return client.ask(**order)
    except Missing as error:
        raise Failed(f"{order['way']}: {error}") from error


# --- throttled -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Throttled:
    """One run. used: of what the survivors' limits allowed. excess: the largest ratio of given to allowed of anyone."""

    survivors_bytes_s: float
    used: float
    excess: float


@contextmanager
def open_throttled(content: Content, store: Path) -> Iterator[Any]:
    """A function that runs it once."""
    with _peers(content, store) as peers:
        survivors = {provider: rate for rate in (*STEADY, SLOW) for provider in [peers.provider("--up", str(rate))]}
        liar = peers.provider("--lies")
        spare = content.scratch / "killed"

        def run() -> Throttled:
            shutil.rmtree(spare, ignore_errors=True)
            shutil.copytree(store, spare)
            victim = peers.again(spare, "--up", str(KILLED))
            everybody = [*survivors, liar, victim]
            done = _watch_and_kill(peers.client, victim, [one.about["address"] for one in everybody])
            if done["liars"] != [liar.about["peer"]]:
                raise Failed(f"liars: {done['liars']}")
            return _account(done, {one.about["peer"]: rate for one, rate in survivors.items()}, victim.about["peer"])

        yield run


def _watch_and_kill(client: Child, victim: Child, addresses: list[str]) -> dict[str, Any]:
    killed: list[float] = []

    def watch(news: dict[str, Any]) -> None:
        if not killed and news["wanted"] and news["kept"] >= KILLED_AT * news["wanted"]:
            killed.append(news["kept"] / news["wanted"])
            victim.kill()

    order = {"way": "bulk", "addresses": addresses, "root": victim.about["root"], "tells": True}
    try:
        done = client.ask_and_watch(watch, **order)
    except Missing as error:
        raise Failed(f"throttled: {error}") from error
    if not killed:
        raise Failed("it was over before anybody was killed")
    return done


def _account(done: Mapping[str, Any], limits: Mapping[str, int], victim: str) -> Throttled:
    seconds, received = done["seconds"], done["received"]
    given = sum(received.get(peer, 0) for peer in limits)
    allowed_s = seconds + BURST_S
    everybody = {**limits, victim: KILLED}
    excess = max(received.get(peer, 0) / (rate * allowed_s) for peer, rate in everybody.items())
    return Throttled(given / seconds, given / (sum(limits.values()) * allowed_s), excess)
