"""One member of a verified round, for `simulations.bench.rounds`: the shipped averager in its own process.

Counted from the encoding to the end of the last check and the decoding: hashes, the way to the averager's process and
back, the exchange, and every part that a group of this size checks, computed anew and compared. Not counted: the
commits, votes and certificate (small messages), and starting and connecting.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import trio

from celluler.aggregation.digests import part_hash
from celluler.aggregation.q16 import Mantissas, decode_parts, encode_parts, part_slices
from celluler.aggregation.wires import FINEST, round_to
from celluler.identity import Identity
from celluler.learning.checks import checks_for
from celluler_node.processes import averager_words as words
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.training.averaging import inputs_go_to_all
from celluler_protocols.averaging_messages import Assignment, Member, Outcome, Plan
from simulations.bench.rounds_peers import ROUND_S, hear, quiet, say

RUN = bytes(range(32))


async def serve(place: int, count: int, size: int, options: dict[str, Any]) -> None:
    values = np.random.default_rng(place).standard_normal(size).astype(np.float32)
    author = Identity.generate()
    with tempfile.TemporaryDirectory(prefix="celluler-bench-") as scratch:
        async with open_process(words.AVERAGER, limits=words.AVERAGER_LIMITS, scratch=Path(scratch)) as child:
            listen = words.Open(Identity.generate().seed, ("/ip4/127.0.0.1/tcp/0",))
            opened = (await child.call(listen)).record
            say({"peer": opened.peer, "addresses": opened.addresses, "author": author.public_key.hex()})
            roster = await trio.to_thread.run_sync(hear)
            await child.call(words.Admit(tuple(_member(each) for each in roster)))
            say({})
            sent = 0.0
            while (number := await trio.to_thread.run_sync(hear)) is not None:
                figures = await _round(child, number, place, values, roster, author, options)
                say({**figures, "sent_bytes": figures["sent_bytes"] - sent})
                sent = figures["sent_bytes"]


async def _round(
    child: Child,
    number: int,
    place: int,
    values: np.ndarray[Any, np.dtype[np.float32]],
    roster: list[Any],
    author: Identity,
    options: dict[str, Any],
) -> dict[str, float]:
    count = len(roster)
    clock = _Clock()
    exponents, encoded = encode_parts(values, count)
    mantissas = _rounded(options["wire"], encoded, count)
    hashes = [
        part_hash(RUN, number, author.public_key, part=part, exponent=exponents[part], mantissas=mantissas[piece])
        for part, piece in enumerate(part_slices(len(values), count))
    ]
    commit_s = clock.lap()
    say({"hashes": [one.hex() for one in hashes], "exponents": exponents})
    commits = await trio.to_thread.run_sync(hear)
    plan = Plan(
        run=RUN,
        round=number,
        view=0,
        set_hash=bytes(32),
        me=place,
        members=tuple(_member(each, commit) for each, commit in zip(roster, commits, strict=True)),
        dimension=len(values),
        parts=count,
        assignments=tuple(Assignment(part, (part + number) % count) for part in range(count)),
        rule="nk",
        f=(count - 1) // 2,
        quorum=count - (count - 1) // 3,
        gather_s=ROUND_S / 2,
        deadline_s=ROUND_S,
        wire=options["wire"],
        to_all=options.get("to_all", inputs_go_to_all(count, count, len(values))),
    )
    clock.lap()
    reply = await child.call(words.Exchange(plan), mantissas.data)
    outcome: Outcome = reply.record.outcome
    assert not outcome.missing, outcome.faults
    assert not outcome.faults, outcome.faults
    exchange_s = clock.lap()
    moved = max([reply.record.moved, *await _check(child, plan, outcome)], key=lambda one: one.sent_bytes)
    check_s = clock.lap()
    decode_parts(tuple(each.exponent for each in outcome.reduced), np.frombuffer(reply.blobs[0], np.int16))
    decode_s = clock.lap()
    return {
        "seconds": commit_s + exchange_s + check_s + decode_s,
        "exchange": exchange_s,
        "check": check_s,
        "encode": commit_s + decode_s,
        "sent_bytes": moved.sent_bytes,
    }


async def _check(child: Child, plan: Plan, outcome: Outcome) -> list[words.Moved]:
    moved: list[words.Moved] = []
    others = [each.part for each in plan.assignments if each.reducer != plan.me]
    async with trio.open_nursery() as nursery:
        for part in others[: checks_for(len(plan.members), plan.parts)]:
            nursery.start_soon(_check_part, child, plan, outcome, part, moved)
    return moved


async def _check_part(child: Child, plan: Plan, outcome: Outcome, part: int, moved: list[words.Moved]) -> None:
    result = next(each for each in outcome.reduced if each.part == part)
    reply = await child.call(words.Check(plan, result))
    assert reply.record.equal
    moved.append(reply.record.moved)


def _rounded(wire: str, mantissas: Mantissas, parts: int) -> Mantissas:
    """As a worker does it: part by part, since blocks begin anew in each."""
    if wire == FINEST:
        return mantissas
    return np.concatenate([round_to(wire, mantissas[piece]) for piece in part_slices(mantissas.size, parts)])


def _member(each: Any, commit: Any = None) -> Member:
    hashes = tuple(bytes.fromhex(one) for one in commit["hashes"]) if commit else ()
    exponents = tuple(commit["exponents"]) if commit else ()
    return Member(each["peer"], bytes.fromhex(each["author"]), tuple(each["addresses"]), hashes, exponents)


class _Clock:
    def __init__(self) -> None:
        self._began = trio.current_time()

    def lap(self) -> float:
        now = trio.current_time()
        passed, self._began = now - self._began, now
        return passed


if __name__ == "__main__":
    quiet()
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
