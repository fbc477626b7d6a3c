"""Inputs that others are asked for, and that we serve: for reducing a part anew, and for doing a member's work again.

A `Checker` asks and a `Server` answers. Neither knows of sockets: whoever makes them says how a peer is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from celluler.aggregation.digests import part_hash, wire_bytes
from celluler.aggregation.wires import unpack
from celluler.errors import ProtocolViolation, Unavailable
from celluler.identity import short
from celluler_protocols.averaging_exchange import Exchange, Sealed
from celluler_protocols.averaging_gathering import check_aggregate, is_committed, used_in
from celluler_protocols.averaging_messages import OWN, Member, PartOutcome, Plan, Squares, Want
from celluler_protocols.averaging_own import OwnWires

MAX_SERVED = 2
"""Times that one peer gets the same input of a check."""

Key = tuple[bytes, int, int]
Bytes = bytes | bytearray | memoryview
Known = Callable[[], list[tuple[Key, Exchange]]]
"""The exchanges that are here, the newest first; those that run among them."""
Ask = Callable[[str, Want, memoryview], Awaitable[bool]]
"""Fills the memory with what a peer answers; whether it had as many bytes. What they are worth is not known yet."""


@dataclass(frozen=True, slots=True)
class Rechecked:
    """equal: the rule gives what was told, in every bit. squares: the inputs' norms. inputs: mantissas by place in the
    set, of all that were used, where it is not equal: they prove it."""

    equal: bool
    squares: Squares
    inputs: Mapping[int, Bytes]


class Checker:
    """Reduces parts anew. me: our averager's name, whom it never asks."""

    def __init__(self, me: str, known: Known, ask: Ask) -> None:
        self._me, self._known, self._ask = me, known, ask
        self._salvaged: dict[tuple[bytes, int, int, int], Bytes] = {}
        self._found: dict[tuple[Key, int], Sealed] = {}

    def note(self, key: Key, sealed: Sealed) -> None:
        """What we have found by ourselves in an exchange."""
        self._found[key, sealed.result.part] = sealed

    def forget(self, key: Key) -> None:
        self._found = {place: sealed for place, sealed in self._found.items() if place[0] != key}

    async def check(self, plan: Plan, result: PartOutcome) -> Rechecked:
        """Reduce a part anew from the inputs that its reducer says it used.

        What an exchange gave us counts, where inputs went to all even what we found in it; other inputs come from the
        reducer, else from the member itself, else, where they went to all, from anybody, so that no single link that is
        cut keeps one from us. One that is not what its member committed to counts as not had. Raises Unavailable when
        one cannot be had; the caller sets the deadline.
        """
        found = self._found.get((plan.key, result.part))
        if found is not None and found.result.used == result.used and self._is_same(plan):
            if found.result == result:
                return Rechecked(True, found.squares, {})
            here = {member: self._here(plan, result.part, member) for member in used_in(plan, result)}
            return Rechecked(False, found.squares, {m: data for m, data in here.items() if data is not None})
        reducer = next(each.reducer for each in plan.assignments if each.part == result.part)
        inputs: dict[int, Bytes] = {}
        try:
            for member in used_in(plan, result):
                key = (plan.run, plan.round, result.part, member)
                had = self._salvaged.pop(key) if key in self._salvaged else self._here(plan, result.part, member)
                inputs[member] = had or await self._input(plan, result.part, member, reducer)
        except Unavailable:
            self._salvage(plan, result.part, inputs)
            raise
        equal, squares = await asyncio.to_thread(check_aggregate, plan, result, inputs)
        return Rechecked(equal, squares, {} if equal else inputs)

    def _is_same(self, plan: Plan) -> bool:
        """Whether the exchange that we know by this name is this one: the same members, bytes and rule."""
        known = next((each.plan for key, each in self._known() if key == plan.key), None)
        return known is not None and replace(known, gather_s=0, deadline_s=0, quorum=0) == replace(
            plan, gather_s=0, deadline_s=0, quorum=0
        )

    def _here(self, plan: Plan, part: int, member: int) -> memoryview | None:
        """An input that an exchange of this round has brought us."""
        who = plan.members[member]
        for key, exchange in self._known():
            places = [place for place, each in enumerate(exchange.plan.members) if each.author == who.author]
            if key[:2] == (plan.run, plan.round) and places and exchange.plan.members[places[0]].hashes == who.hashes:
                held = exchange.input_of(part, places[0])
                if held is not None:
                    return held
        return None

    async def inputs(self, run: bytes, round_number: int, member: Member, sizes: Mapping[int, int]) -> bytearray:
        """Parts of a member's update of a past round, from itself, each what it committed to; one after another.

        member: with hashes and exponents of the whole update. sizes: bytes of each part wanted. Raises Unavailable.
        """
        whole = bytearray(sum(sizes.values()))
        place = 0
        for part, size in sizes.items():
            target = memoryview(whole)[place : place + size]
            if not await self._ask(member.peer, Want(run, round_number, part, OWN), target):
                raise Unavailable(f"{short(member.peer)} does not serve part {part} of round {round_number}")
            exponent, wanted = member.exponents[part], member.hashes[part]
            hashing = partial(part_hash, run, round_number, member.author, part=part, exponent=exponent)
            if await asyncio.to_thread(hashing, mantissas=target) != wanted:
                raise Unavailable(f"{short(member.peer)} serves another part {part} than it committed to")
            place += size
        return whole

    def _salvage(self, plan: Plan, part: int, inputs: Mapping[int, Bytes]) -> None:
        """What was had for a check that could not be finished: it may come again, and no input is served for ever."""
        for old in [key for key in self._salvaged if key[:2] != (plan.run, plan.round)]:
            del self._salvaged[old]
        self._salvaged |= {(plan.run, plan.round, part, member): data for member, data in inputs.items()}

    async def _input(self, plan: Plan, part: int, member: int, reducer: int) -> Bytes:
        size, want = plan.bytes_of(part), Want(plan.run, plan.round, part, member)
        others = range(len(plan.members)) if plan.to_all else ()
        for place in dict.fromkeys((reducer, member, *others)):
            if plan.members[place].peer == self._me:
                continue
            data = bytearray(size)
            if not await self._ask(plan.members[place].peer, want, memoryview(data)):
                continue
            with contextlib.suppress(ProtocolViolation):
                mantissas = await asyncio.to_thread(unpack, plan.wire, data, plan.values_in(part))
                if await asyncio.to_thread(is_committed, plan, part, member, wire_bytes(mantissas)):
                    return memoryview(wire_bytes(mantissas))
        raise Unavailable(f"the input of member {member} for part {part}")


class Server:
    """Answers `Want`."""

    def __init__(self, known: Known, own: OwnWires) -> None:
        self._known, self._own = known, own
        self._served: Counter[tuple[str, Key, int, int]] = Counter()

    def forget(self, key: Key) -> None:
        self._served = Counter({place: count for place, count in self._served.items() if place[1] != key})

    def find(self, peer: str, want: Want, run: bytes | None) -> Bytes | None:
        """What we have of it as it travels; None: not here. Raises Unavailable, ProtocolViolation for too often.

        run: the one that we know.
        """
        if want.member == OWN:
            return self._own.serve(peer, want.round, want.part) if want.run == run else None
        for key, exchange in self._known():
            if key[:2] != (want.run, want.round):
                continue
            held = exchange.input_packed(want.part, want.member) if want.member < len(exchange.plan.members) else None
            if held is None:
                continue
            self._served[peer, key, want.part, want.member] += 1
            if self._served[peer, key, want.part, want.member] > MAX_SERVED:
                raise ProtocolViolation("asks for the same input again and again", peer=peer)
            return held
        return None
