"""A seeded world for machines without input and output: a virtual clock and a network that misbehaves on purpose.

Runs any machine with `receive(peer, message, now)`, `tick(now)` and `next_deadline()`: messages travel with latency,
loss, duplication and reordering; links can be cut, groups parted, machines crashed and started again. Everything
random comes from one seed, and `trace` is a digest of all that was delivered: same seed, same trace.

Knows nothing of what a message means, and of bytes only what `size_of` says.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol


class Machine(Protocol):
    """What the world can run. `next_deadline` may be None: nothing to wait for."""

    def receive(self, peer: Any, message: Any, now: float) -> Iterable[Any]: ...

    def tick(self, now: float) -> Iterable[Any]: ...

    def next_deadline(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Network:
    """How every link behaves. A message takes `latency_s[0]` at least; short times are commoner than long ones.

    ordered: messages from one peer to another never overtake each other, as on one stream.
    """

    latency_s: tuple[float, float] = (0.01, 0.15)
    loss: float = 0.0
    duplication: float = 0.0
    ordered: bool = False


@dataclass(slots=True)
class Traffic:
    """What one name sent (lost messages too) and received."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0


def nothing(name: str, output: Any, now: float) -> None:
    """An observer that looks away."""


def no_size(message: Any) -> int:
    return 0


class World:
    """Names, their machines, and the events between them.

    sends: the class of those outputs that travel; they have `peer` and `message`.
    observe: called with (name, output, now) for every other output.
    size_of: bytes of a message, for the traffic count.
    """

    def __init__(
        self,
        seed: int,
        network: Network,
        *,
        sends: type,
        observe: Callable[[str, Any, float], None] = nothing,
        size_of: Callable[[Any], int] = no_size,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.network = network
        self.traffic: dict[str, Traffic] = {}
        self.delivered = 0
        self._machines: dict[str, Machine] = {}
        self._armed: dict[str, float] = {}
        self._events: list[tuple[float, int, str, str, Any]] = []  # (at, serial, receiver, sender, message)
        self._serial = 0
        self._cut: set[tuple[str, str]] = set()
        self._side: dict[str, int] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._sends, self._observe, self._size_of = sends, observe, size_of
        self._hash = hashlib.blake2b(digest_size=16)

    # --- who is there ---

    def add(self, name: str, machine: Machine, outputs: Iterable[Any] = ()) -> None:
        """A machine starts. outputs: what it asked for when it was made."""
        self._machines[name] = machine
        self.traffic.setdefault(name, Traffic())
        self._armed.pop(name, None)
        self.apply(name, outputs)

    def remove(self, name: str) -> None:
        """A crash: from now on it neither hears nor acts."""
        del self._machines[name]

    def __contains__(self, name: str) -> bool:
        return name in self._machines

    def __getitem__(self, name: str) -> Machine:
        return self._machines[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._machines)

    # --- what the network does ---

    def cut(self, one: str, other: str) -> None:
        """Both directions between two names are lost until `restore`."""
        self._cut |= {(one, other), (other, one)}

    def restore(self, one: str, other: str) -> None:
        self._cut -= {(one, other), (other, one)}

    def partition(self, *groups: Iterable[str]) -> None:
        """Only names of one group hear each other; names in none are a group of their own."""
        self._side = {name: side for side, group in enumerate(groups, 1) for name in group}

    def heal(self) -> None:
        self._side, self._cut = {}, set()

    def reachable(self, sender: str, receiver: str) -> bool:
        side = self._side
        return (sender, receiver) not in self._cut and side.get(sender, 0) == side.get(receiver, 0)

    # --- time ---

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at a virtual time."""
        self._push(when, "", "", action)

    def apply(self, name: str, outputs: Iterable[Any]) -> None:
        """Do what the machine of that name asked for, and look when it wants to be woken."""
        for output in outputs:
            if isinstance(output, self._sends):
                self._send(name, output.peer, output.message)  # type: ignore[attr-defined]
            else:
                self._observe(name, output, self.now)
        machine = self._machines.get(name)
        deadline = machine.next_deadline() if machine is not None else None
        if deadline is not None and deadline < self._armed.get(name, float("inf")):
            self._armed[name] = wake = max(deadline, self.now)
            self._push(wake, name, "", None)

    def run(self, until: float) -> None:
        """Let everything happen up to a virtual time."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, receiver, sender, message = heappop(events)
            if sender:
                self._deliver(receiver, sender, message)
            elif receiver:
                self._wake(receiver)
            else:
                message()
        self.now = until

    @property
    def trace(self) -> str:
        """A digest of every delivery so far, in hex."""
        return self._hash.hexdigest()

    def _send(self, sender: str, receiver: str, message: Any) -> None:
        network, rng, traffic = self.network, self.rng, self.traffic[sender]
        traffic.sent += 1
        traffic.sent_bytes += self._size_of(message)
        copies = 1 + (network.duplication > 0.0 and rng.random() < network.duplication)
        for _ in range(copies):
            lost, spread = rng.random() < network.loss, rng.random()
            if lost or not self.reachable(sender, receiver):
                continue
            low, high = network.latency_s
            arrival = self.now + low + (high - low) * spread * spread
            if network.ordered:
                arrival = max(arrival, self._last.get((sender, receiver), 0.0))
                self._last[sender, receiver] = arrival
            self._push(arrival, receiver, sender, message)

    def _deliver(self, receiver: str, sender: str, message: Any) -> None:
        machine = self._machines.get(receiver)
        if machine is None:
            return
        self.delivered += 1
        self.traffic[receiver].received += 1
        self._hash.update(f"{self.now:.9f} {sender} {receiver} {type(message).__name__}\n".encode())
        self.apply(receiver, machine.receive(sender, message, self.now))

    def _wake(self, name: str) -> None:
        if self._armed.get(name) != self.now:
            return  # an earlier deadline took this one's place; waking anyway would breed a second alarm for ever
        del self._armed[name]
        machine = self._machines.get(name)
        if machine is None:
            return
        deadline = machine.next_deadline()
        outputs = machine.tick(self.now) if deadline is not None and deadline <= self.now else ()
        self.apply(name, outputs)

    def _push(self, when: float, receiver: str, sender: str, message: Any) -> None:
        self._serial += 1
        heappush(self._events, (when, self._serial, receiver, sender, message))
