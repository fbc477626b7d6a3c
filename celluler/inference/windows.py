"""Dynamic batching as a state machine: predictions that can be computed together are, one batch at a time.

    submit(ask, now) … plan(now) → batch, which a worker computes → done(now) or failed(now) → plan(now) → …

While a batch is being computed others wait, and so make up the next one. A worker that is free waits for more only
while fewer wait than clients lately kept under way at once, and then no longer than its last batches took: so who asks
alone never waits, and nobody waits for more than what a batch costs, or `wait_s`. A wait that was in vain lowers what
is expected.

Fair: clients lead a batch in turn, with what they asked first; what is left of it is filled round about by what others
asked that goes with it. A batch that fails is computed again one by one, so that nobody answers for another's sample;
whose it was is computed alone for a while. Knows no clock, no worker, and nothing of arrays.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from celluler.errors import Busy, LocalError

ALONE_AFTER = 16
"""Of a client whose sample made a batch fail, how many asks are computed alone."""
MAX_REMEMBERED = 1024
_SLOWLY = 0.25


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """samples, batch_bytes: of one batch; a single ask may be more, and is one then. wait_s: the longest that a free
    worker waits for more. queue, client_queue: asks that wait, of all clients and of one. queue_bytes: of all."""

    samples: int = 32
    batch_bytes: int = 1 << 20
    wait_s: float = 0.002
    queue: int = 256
    client_queue: int = 128
    queue_bytes: int = 256 << 20


USUAL = WindowLimits()


@dataclass(frozen=True, slots=True)
class Ask:
    """number: of its own. group: equal where asks may be computed together, None for one that goes alone."""

    number: int
    client: str
    group: Hashable | None
    samples: int
    byte_count: int


@dataclass(slots=True)
class _Waiting:
    ask: Ask
    since: float


class Window:
    """Every ask is in exactly one batch that ends well, or fails alone, or is cancelled."""

    def __init__(self, limits: WindowLimits = USUAL) -> None:
        self._limits = limits
        self._clients: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        """Who leads next is first."""
        self._again: deque[Ask] = deque()
        self._suspects: OrderedDict[str, int] = OrderedDict()
        self._flight: tuple[Ask, ...] | None = None
        self._left: set[int] = set()
        """Of those in flight, for which nobody waits any more."""
        self._retried = False
        self._started = self._free_at = 0.0
        self._took = 0.0
        self._asks = self._samples = self._bytes = 0
        self._known = 0
        self._deadline: float | None = None

    @property
    def waiting(self) -> int:
        """Asks that no batch has taken yet."""
        return self._asks + len(self._again)

    @property
    def flying(self) -> int:
        """Asks that are being computed."""
        return len(self._flight or ())

    @property
    def deadline(self) -> float | None:
        """When `plan` has something that it had not when it was last asked; None: not before something else happens."""
        return self._deadline

    def submit(self, ask: Ask, now: float) -> None:
        """Raises Busy while too much waits."""
        limits, queue = self._limits, self._clients.get(ask.client, ())
        if self.waiting >= limits.queue or len(queue) >= limits.client_queue:
            raise Busy(f"{self.waiting} predictions of this model wait, {len(queue)} of them of this client")
        if self._bytes + ask.byte_count > max(limits.queue_bytes, ask.byte_count):
            raise Busy(f"predictions of this model that wait hold {self._bytes} bytes")
        self._clients.setdefault(ask.client, deque()).append(_Waiting(ask, now))
        self._count(ask, 1)
        self._known = max(self._known, self._samples + sum(one.samples for one in self._flight or ()))

    def cancel(self, number: int) -> None:
        """Nobody waits for it any more. One that is being computed goes on, but is not computed again."""
        if any(one.number == number for one in self._flight or ()):
            self._left.add(number)
            return
        for one in self._again:
            if one.number == number:
                self._again.remove(one)
                return
        for queue in self._clients.values():
            for waiting in queue:
                if waiting.ask.number == number:
                    self._take(waiting)
                    return

    def plan(self, now: float) -> tuple[Ask, ...] | None:
        """The next batch, None while one is being computed, nothing waits, or it is worth waiting for more."""
        self._deadline = None
        if self._flight is not None or not self.waiting:
            return None
        if self._again:
            return self._fly((self._again.popleft(),), now, retried=True)
        batch = self._gathered()
        samples = sum(one.ask.samples for one in batch)
        joins = self._group(batch[0].ask) is not None
        if joins and samples < self._limits.samples and self._samples < self._known:
            until = max(self._free_at, batch[0].since) + min(self._limits.wait_s, self._took)
            if now < until:
                self._deadline = until
                return None
            self._known = self._samples  # those who were expected do not come
        self._lead(batch)
        return self._fly(tuple(one.ask for one in batch), now, retried=False)

    def done(self, now: float) -> None:
        """The batch was computed."""
        if self._flight is None:
            raise LocalError("no batch is being computed")
        took = now - self._started
        self._took += (took - self._took) * (_SLOWLY if self._took else 1.0)
        self._flight, self._left, self._free_at = None, set(), now

    def failed(self, now: float) -> tuple[Ask, ...]:
        """The batch failed, and the worker lives on. Those of whom it was: the others are computed again, alone."""
        batch, retried, left = self._flight, self._retried, self._left
        self.done(now)
        assert batch is not None
        if len(batch) == 1:
            if retried or batch[0].client in self._suspects:
                self._suspect(batch[0].client)
            return batch
        self._again.extend(one for one in batch if one.number not in left)
        return ()

    def clear(self) -> tuple[Ask, ...]:
        """The worker is gone: everything that waited or was being computed, which fails with it."""
        left = (*(self._flight or ()), *self._again, *(one.ask for queue in self._clients.values() for one in queue))
        self._flight, self._left, self._deadline = None, set(), None
        self._again.clear()
        self._clients.clear()
        self._asks = self._samples = self._bytes = self._known = 0
        return left

    # --- whose turn it is --------------------------------------------------------------------------------------------

    def _gathered(self) -> list[_Waiting]:
        """What the next batch would be: what its leader asked first, and what goes with it."""
        leader = next(iter(self._clients.values()))[0]
        group, batch = self._group(leader.ask), [leader]
        if group is None:
            return batch
        samples, byte_count = leader.ask.samples, leader.ask.byte_count
        for one in self._round_about(group, leader):
            if samples + one.ask.samples <= self._limits.samples:
                if byte_count + one.ask.byte_count > self._limits.batch_bytes:
                    break
                samples, byte_count = samples + one.ask.samples, byte_count + one.ask.byte_count
                batch.append(one)
            if samples >= self._limits.samples:
                break
        return batch

    def _round_about(self, group: Hashable, leader: _Waiting) -> Iterator[_Waiting]:
        """What else goes with that group, one of each client in turn, the leader's own turn being the last."""
        mine, *others = (
            (one for one in queue if one is not leader and self._group(one.ask) == group)
            for queue in self._clients.values()
        )
        turns = deque([*others, mine])
        while turns:
            its = turns.popleft()
            if (one := next(its, None)) is not None:
                yield one
                turns.append(its)

    def _group(self, ask: Ask) -> Hashable | None:
        return None if self._suspects and ask.client in self._suspects else ask.group

    def _lead(self, batch: list[_Waiting]) -> None:
        leader = batch[0].ask.client
        for one in batch:
            self._take(one)
        if leader in self._clients:
            self._clients.move_to_end(leader)
        if leader in self._suspects:
            self._suspects[leader] -= 1
            if not self._suspects[leader]:
                del self._suspects[leader]

    def _suspect(self, client: str) -> None:
        self._suspects[client] = ALONE_AFTER
        self._suspects.move_to_end(client)
        if len(self._suspects) > MAX_REMEMBERED:
            self._suspects.popitem(last=False)

    def _fly(self, batch: tuple[Ask, ...], now: float, *, retried: bool) -> tuple[Ask, ...]:
        self._flight, self._retried, self._started = batch, retried, now
        return batch

    def _take(self, waiting: _Waiting) -> None:
        queue = self._clients[waiting.ask.client]
        queue.remove(waiting)
        if not queue:
            del self._clients[waiting.ask.client]
        self._count(waiting.ask, -1)

    def _count(self, ask: Ask, sign: int) -> None:
        self._asks += sign
        self._samples += sign * ask.samples
        self._bytes += sign * ask.byte_count
