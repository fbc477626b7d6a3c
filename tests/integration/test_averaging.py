from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio
from numpy.typing import NDArray

from celluler.aggregation.q16 import part_slices
from celluler.aggregation.rules import RULES
from celluler.errors import WorkerFailed
from celluler.identity import Identity
from celluler_node.processes.averager_words import AVERAGER, AVERAGER_LIMITS, Check, Close, Inputs, Open
from celluler_node.processes.supervisor import open_process
from celluler_protocols.averaging_messages import Assignment, Outcome
from simulations.attacks import averager_lies as attacks
from tests.support.averagers import LOOPBACK, Peer, Round, exchange_all, open_peers, plan_round

DIMENSION = 50_003
ROOT = Path(__file__).parents[2]


def updates_for(count: int, *, seed: int = 7) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    common = random.standard_normal(DIMENSION)
    return [(common + 0.3 * random.standard_normal(DIMENSION)).astype(np.float32) for _ in range(count)]


def expected(told: Round, rule: str, used: list[int]) -> bytes:
    """The aggregate computed here, straight from the members' bytes."""
    rows = np.stack([np.frombuffer(told.blobs[member], "<i2") for member in used]).astype(np.int16)
    reduced = []
    for part, piece in enumerate(part_slices(DIMENSION, told.plan.parts)):
        exponents = np.array([told.plan.members[member].exponents[part] for member in used], np.int16)
        reduced.append(RULES[rule](exponents, np.ascontiguousarray(rows[:, piece]), told.plan.f).mantissas)
    return np.concatenate(reduced).astype("<i2").tobytes()


def faults_of(outcome: Outcome) -> set[tuple[str, int]]:
    return {(fault.kind, fault.member) for fault in outcome.faults}


async def check(peer: Peer, told: Round, place: int, outcome: Outcome, part: int) -> bool:
    result = next(each for each in outcome.reduced if each.part == part)
    return (await peer.child.call(Check(told.plan_of(place), result))).record.equal


async def assert_proven(peer: Peer, told: Round, place: int, outcome: Outcome, part: int) -> None:
    """The part is found to be wrong, and what came with that is what the members had sent."""
    result = next(each for each in outcome.reduced if each.part == part)
    reply = await peer.child.call(Check(told.plan_of(place), result))
    used = [member for member in range(len(told.plan.members)) if result.used >> member & 1]
    piece = part_slices(DIMENSION, told.plan.parts)[part]
    inputs = [np.frombuffer(told.blobs[member], "<i2")[piece].tobytes() for member in used]
    assert (reply.record.equal, reply.record.proven_by) == (False, tuple(used))
    assert bytes(reply.blobs[0]) == b"".join(inputs)


async def test_all_members_get_the_same_bytes_and_an_attack_no_weight(tmp_path: Path) -> None:
    async with open_peers(5, tmp_path) as peers:
        updates = updates_for(5)
        updates[3] *= np.float32(-1000)
        told = plan_round(peers, updates)
        with trio.fail_after(30):
            results = await exchange_all(peers, told, range(5))
        assert {blob for _, blob in results.values()} == {expected(told, "nk", [0, 1, 2, 3, 4])}
        assert len({outcome.reduced for outcome, _ in results.values()}) == 1
        for outcome, _ in results.values():
            assert (outcome.missing, outcome.faults) == ((), ())
            assert all(part.used == 0b11111 and part.weights[3] == 0 for part in outcome.reduced)
        with trio.fail_after(30):
            assert await check(peers[0], told, 0, results[0][0], 1)  # its inputs come from others

        # the next round, where some are ahead and one has committed to nothing
        late: list[NDArray[np.float32] | None] = [*updates_for(4, seed=8), None]
        told = plan_round(peers, late, number=2)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                ahead: dict[int, tuple[Outcome, bytes]] = {}
                nursery.start_soon(_into, ahead, peers, told, (0, 1, 2, 3))
                await peers[4].child.call(Check(plan_round(peers, updates).plan_of(4), results[4][0].reduced[0]))
                ahead |= await exchange_all(peers, told, (4,))
        assert {blob for _, blob in ahead.values()} == {expected(told, "nk", [0, 1, 2, 3])}
        assert all(part.used == 0b01111 for part in ahead[4][0].reduced)


async def _into(
    results: dict[int, tuple[Outcome, bytes]], peers: list[Peer], told: Round, places: tuple[int, ...]
) -> None:
    results |= await exchange_all(peers, told, places)


async def test_a_silent_member_costs_its_own_part_and_another_view_brings_that(tmp_path: Path) -> None:
    async with open_peers(4, tmp_path) as peers:
        told = plan_round(peers, updates_for(4), gather_s=0.5, deadline_s=1.5)
        lost = next(each.part for each in told.plan.assignments if each.reducer == 3)
        with trio.fail_after(30):
            first = await exchange_all(peers, told, (0, 1, 2))
        assert len({blob for _, blob in first.values()}) == 1
        for outcome, _ in first.values():
            assert outcome.missing == (lost,)
            assert all(part.used == 0b0111 for part in outcome.reduced)
            assert ("not-reduced", 3) in faults_of(outcome)
            assert ("missing", 3) in faults_of(outcome)
            assert {member for _, member in faults_of(outcome)} == {3}

        piece = part_slices(DIMENSION, 4)[lost]
        plan = replace(told.plan, view=1, assignments=(Assignment(lost, 0),))
        again = Round(plan, [blob[piece.start * 2 : piece.stop * 2] for blob in told.blobs])
        with trio.fail_after(30):
            second = await exchange_all(peers, again, (0, 1, 2))
        whole = expected(told, "nk", [0, 1, 2])
        assert {blob for _, blob in second.values()} == {whole[piece.start * 2 : piece.stop * 2]}


async def test_who_does_a_members_work_again_gets_what_it_sent_in_the_last_rounds(tmp_path: Path) -> None:
    async with open_peers(3, tmp_path) as peers:
        rounds = [plan_round(peers, updates_for(3, seed=number), number=number) for number in range(1, 7)]
        for told in rounds:
            with trio.fail_after(30):
                await exchange_all(peers, told, range(3))

        async def ask(number: int, parts: tuple[int, ...], **changes: Any) -> bytes:
            told = rounds[number - 1]
            request = Inputs(told.plan.run, number, told.plan.members[0], DIMENSION, parts)
            with trio.fail_after(30):
                return bytes((await peers[2].child.call(replace(request, **changes))).blobs[0])

        pieces = part_slices(DIMENSION, 3)
        for number in range(2, 7):
            assert await ask(number, (0, 1, 2)) == rounds[number - 1].blobs[0]
        wanted = rounds[5].blobs[0]
        assert await ask(6, (0, 2)) == b"".join(wanted[2 * pieces[one].start : 2 * pieces[one].stop] for one in (0, 2))
        with pytest.raises(WorkerFailed, match="does not serve part 0 of round 1"):
            await ask(1, (0,))
        with pytest.raises(WorkerFailed, match="another part 0"):
            await ask(6, (0,), member=rounds[4].plan.members[0])
        for _ in range(3):
            await ask(5, (1,))
        with pytest.raises(WorkerFailed, match="does not serve part 1 of round 5"):
            await ask(5, (1,))
        with pytest.raises(WorkerFailed, match="no part 3 of 3"):
            await ask(5, (3,))

        await peers[0].child.call(_admit(peers[:2]))
        with pytest.raises(WorkerFailed, match="does not serve"):
            await ask(4, (0,))
        await peers[0].child.call(_admit(peers))  # a roster that has grown
        assert await ask(4, (0, 1, 2)) == rounds[3].blobs[0]


async def test_each_lie_is_named_and_the_round_goes_on_without_it(tmp_path: Path) -> None:
    """The last of five lies once a round. The others lose its input or its part, and nothing else."""
    honest = range(4)
    async with open_peers(5, tmp_path, last=attacks.LIAR) as peers:

        async def play(lie: int) -> tuple[Round, dict[int, tuple[Outcome, bytes]]]:
            told = plan_round(peers, updates_for(5, seed=lie), number=lie, gather_s=1.0, deadline_s=2.0)
            with trio.fail_after(30):
                results = await exchange_all(peers, told, range(5))
            assert len({results[place][1] for place in honest}) == 1
            assert all(member == 4 for place in honest for _, member in faults_of(results[place][0]))
            return told, results

        for lie, kind in (
            (attacks.OTHER_BYTES, "hash"),
            (attacks.OTHER_LENGTH, "length"),
            (attacks.BROKEN_STREAM, "missing"),
        ):
            told, results = await play(lie)
            for place in honest:
                outcome, blob = results[place]
                assert (kind, 4) in faults_of(outcome)
                assert outcome.missing == ()
                others = [part for part in outcome.reduced if told.plan.assignments[part.part].reducer != 4]
                assert all(part.used == 0b01111 for part in others)
                assert blob == results[0][1]

        for lie in (attacks.TORN_AGGREGATE, attacks.OTHER_SET):
            told, results = await play(lie)
            lost = next(each.part for each in told.plan.assignments if each.reducer == 4)
            for place in honest:
                assert ("aggregate", 4) in faults_of(results[place][0])
                assert results[place][0].missing == (lost,)

        told, results = await play(attacks.WRONG_AGGREGATE)
        lied = next(each.part for each in told.plan.assignments if each.reducer == 4)
        with trio.fail_after(30):
            await assert_proven(peers[0], told, 0, results[0][0], lied)
            assert await check(peers[0], told, 0, results[0][0], (lied + 1) % 5)

        told, results = await play(attacks.GARBAGE)
        assert results[0][1] == expected(told, "nk", [0, 1, 2, 3, 4])


async def test_where_inputs_go_to_all_everybody_knows_and_a_lie_is_found(tmp_path: Path) -> None:
    """The last of four lies, but in the first round. What everybody has found needs no fetching to be checked."""
    async with open_peers(4, tmp_path, last=attacks.LIAR) as peers:

        async def play(lie: int) -> tuple[Round, dict[int, tuple[Outcome, bytes]]]:
            told = plan_round(peers, updates_for(4, seed=lie), number=lie, gather_s=1.5, deadline_s=3.0)
            told = replace(told, plan=replace(told.plan, to_all=True))
            with trio.fail_after(30):
                results = await exchange_all(peers, told, range(4))
            assert len({results[place][1] for place in range(3)}) == 1
            return told, results

        told, results = await play(attacks.HONEST)
        assert results[0][1] == results[3][1] == expected(told, "nk", [0, 1, 2, 3])
        assert all((outcome.missing, outcome.faults) == ((), ()) for outcome, _ in results.values())
        with trio.fail_after(10):
            assert all([await check(peers[0], told, 0, results[0][0], part) for part in range(4)])

        told, results = await play(attacks.OTHER_BYTES)  # of its first part: the rest of it counts
        assert all(results[place][0].missing == () for place in range(3))
        assert {part.part: part.used for part in results[0][0].reduced}[1] == 0b1111

        told, results = await play(attacks.WRONG_AGGREGATE)
        lied = next(each.part for each in told.plan.assignments if each.reducer == 3)
        with trio.fail_after(10):
            assert [await check(peers[0], told, 0, results[0][0], part) for part in range(4)] == [
                part != lied for part in range(4)
            ]


async def test_a_stranger_is_refused_and_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    async with open_peers(3, tmp_path) as peers:
        known, stranger = peers[:2], peers[2]
        await known[0].child.call(_admit(known))
        await known[1].child.call(_admit(known))
        told = plan_round([*known, stranger], updates_for(3), gather_s=0.5, deadline_s=1.0)
        with trio.fail_after(30):
            results = await exchange_all(peers, told, (2,))
        assert results[2][0].missing == (0, 1, 2)
        with pytest.raises(WorkerFailed, match="follow"):
            await stranger.exchange(told.plan_of(2), told.blobs[2])
        with pytest.raises(WorkerFailed, match="gives our place"):
            await known[0].exchange(told.plan_of(1), told.blobs[1])
        with pytest.raises(WorkerFailed, match="bytes of our own"):
            await known[0].exchange(told.plan_of(0), told.blobs[0][:-2])
        with pytest.raises(WorkerFailed, match="not what we committed to"):
            await known[0].exchange(told.plan_of(0), told.blobs[1])
        await known[0].child.call(Close(1.0))
        with pytest.raises(WorkerFailed, match="not open"):
            await known[0].exchange(told.plan_of(0), told.blobs[0])


def _admit(peers: list[Peer]):
    from celluler_node.processes.averager_words import Admit  # noqa: PLC0415

    return Admit(tuple(peer.member() for peer in peers))


async def test_nothing_is_left_of_an_averager_that_was_closed(tmp_path: Path) -> None:
    async with open_process(AVERAGER, limits=AVERAGER_LIMITS, scratch=tmp_path) as child:
        with trio.fail_after(30):
            await child.call(Open(Identity.generate().seed, LOOPBACK))
        family = psutil.Process(child.pid).children(recursive=True)
        folders = folders_of(family)
        assert [process.name() for process in family].count("p2pd") == 1
        assert all(folder.is_dir() for folder in folders)
    assert_gone(family, folders)


NODE_SCRIPT = """
import sys, trio
from pathlib import Path
from celluler.identity import Identity
from celluler_node.processes.averager_words import AVERAGER, AVERAGER_LIMITS, Open
from celluler_node.processes.supervisor import open_process

async def main():
    async with open_process(AVERAGER, limits=AVERAGER_LIMITS, scratch=Path(sys.argv[1])) as child:
        await child.call(Open(Identity.generate().seed, ("/ip4/127.0.0.1/tcp/0",)))
        print("the averager listens", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("victim", ["node", "averager", "p2pd_guard"])
def test_whoever_is_killed_nothing_is_left(victim: str) -> None:
    with tempfile.TemporaryDirectory(prefix="scratch-") as scratch:
        _kill(victim, Path(scratch))


def _kill(victim: str, scratch: Path) -> None:
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "protocols", "node"))
    node = subprocess.Popen(
        [sys.executable, "-c", NODE_SCRIPT, str(scratch)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert node.stdout is not None
        while (line := node.stdout.readline()) != "the averager listens\n":
            assert line, "the node ended"
        family = psutil.Process(node.pid).children(recursive=True)
        folders = folders_of(family)
        assert folders
        averager, guard = family[0].pid, family[1].pid
        os.kill({"node": node.pid, "averager": averager, "p2pd_guard": guard}[victim], signal.SIGKILL)
        if victim == "p2pd_guard":
            assert_gone(family, folders)  # the averager tidied up instead, and ended
        else:
            assert_gone(family, folders)
    finally:
        node.kill()
        node.wait()
        assert_gone(family, [])


def folders_of(family: list[psutil.Process]) -> list[Path]:
    """The folders that hold p2pd's sockets, from its own arguments."""
    arguments = next(process.cmdline() for process in family if process.name() == "p2pd")
    sockets = [argument.partition("/unix")[2] for argument in arguments if "-listen=/unix" in argument]
    return [Path(path).parent for path in sockets]


def assert_gone(family: list[psutil.Process], folders: list[Path]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert [folder for folder in folders if folder.exists()] == []
