"""The supervisor over real processes: whatever happens to one, its calls say why and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from celluler.errors import LocalError, WorkerFailed
from celluler_node.processes.frames import encode
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Failure, Kind, Limits, Program
from tests.support.process_children import (
    ASYNC,
    BROKEN,
    MUTE,
    STUBBORN,
    SYNC,
    Breed,
    Die,
    Eat,
    Echo,
    Garble,
    Look,
    Note,
    Raise,
    Said,
    Seen,
    Shut,
    Sleep,
    Spin,
    Tell,
)

LIMITS = Limits(memory_bytes=1 << 30, open_files=64)

either = pytest.mark.parametrize("program", [SYNC, ASYNC], ids=["sync", "asyncio"])


def exists(pid: int) -> bool:
    """Running, and not a zombie that waits for its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors() -> int:
    return psutil.Process().num_fds()


async def until_gone(pid: int) -> None:
    with trio.fail_after(10):
        while exists(pid):  # noqa: ASYNC110  the end of somebody else's child rings no bell
            await trio.sleep(0.01)


@asynccontextmanager
async def running(program: Program, scratch: Path, limits: Limits = LIMITS):
    """A child, and afterwards the proof that neither it nor any process or descriptor of ours is left."""
    before = descriptors()
    pids: list[int] = []
    try:
        with trio.fail_after(30):
            async with open_process(program, limits=limits, scratch=scratch) as child:
                pids.append(child.pid)
                yield child
    finally:
        assert not any(exists(pid) for pid in pids)
        assert not psutil.Process().children(recursive=True)
        assert descriptors() == before


async def failure_of(child: Child, request: object, *blobs: bytes) -> str:
    with pytest.raises(WorkerFailed) as caught:
        await child.call(request, *blobs)
    return caught.value.reason


@either
async def test_a_process_answers_calls_side_by_side_and_ends_when_it_is_let_go(program, tmp_path):
    async with running(program, tmp_path) as child:
        blob = os.urandom(3 << 20)
        answers = []

        async def ask(text: str) -> None:
            reply = await child.call(Echo(text), blob, b"", text.encode())
            answers.append((reply.record, [bytes(part) for part in reply.blobs]))

        async with trio.open_nursery() as nursery:
            for text in "abc":
                nursery.start_soon(ask, text)
        assert sorted(answers, key=lambda answer: answer[0].text) == [
            (Said(text), [blob, b"", text.encode()]) for text in "abc"
        ]
        assert child.isolation.dies_with_node == (sys.platform == "linux")
    assert child.reason == "ended by itself"


@either
async def test_what_a_process_says_unasked_arrives(program, tmp_path):
    async with running(program, tmp_path) as child:
        assert (await child.call(Tell("half done"))).record == Said("told")
        assert await child.events.receive() == Note("half done")


@either
async def test_an_exception_is_an_answer_and_the_process_goes_on(program, tmp_path):
    async with running(program, tmp_path) as child:
        assert await failure_of(child, Raise("no\nsuch\tthing")) == f"{program.name}: ValueError: no such thing"
        assert (await child.call(Echo("still here"))).record == Said("still here")


@either
async def test_too_much_memory_is_an_answer_that_names_the_limit(program, tmp_path):
    async with running(program, tmp_path, replace(LIMITS, memory_bytes=512 << 20)) as child:
        assert await failure_of(child, Eat(1024)) == f"{program.name}: MemoryError: memory limit of 512 MiB"
        assert (await child.call(Eat(1))).record == Said(str(1 << 20))


@either
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (0, "exited with status 7: last words"),
        (signal.SIGKILL, "killed by SIGKILL (by somebody, or by the kernel for want of memory)"),
        (signal.SIGTERM, "killed by SIGTERM: last words"),
    ],
)
async def test_a_death_fails_every_call_with_its_reason(program, number, reason, tmp_path):
    async with running(program, tmp_path) as child:
        assert await failure_of(child, Die(int(number))) == f"{program.name}: {reason}"
        assert await failure_of(child, Echo("anybody")) == f"{program.name}: {reason}"
        await child.ended.wait()
        assert child.reason == reason


async def test_processor_time_runs_out_with_its_own_reason(tmp_path):
    async with running(SYNC, tmp_path, replace(LIMITS, cpu_s=1)) as child:
        assert await failure_of(child, Spin()) == "sync: processor time limit of 1 s"


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 100, b"".join(encode(Kind.REPLY, Failure("E", "x"), call=999)), b"".join(encode(Kind.BOOT, None))],
    ids=["noise", "an answer to nobody", "an order"],
)
async def test_a_process_that_breaks_the_protocol_is_killed(garbage, tmp_path):
    async with running(SYNC, tmp_path) as child:
        assert "broke the protocol of its channel" in await failure_of(child, Garble(), garbage)
        await until_gone(child.pid)


async def test_an_answer_over_the_limit_is_refused_by_both_sides(tmp_path):
    async with running(replace(SYNC, max_blob_bytes=1000), tmp_path) as child:
        with pytest.raises(LocalError):
            await child.call(Echo("x"), bytes(1001))
        huge = b"".join(encode(Kind.REPLY, Said("x"), [bytes(1001)], call=1))[:-1001]
        assert "limit 1000" in await failure_of(child, Garble(), huge)


async def test_a_process_that_closes_its_channel_and_stays_is_killed(tmp_path):
    async with running(SYNC, tmp_path) as child:
        assert await failure_of(child, Shut()) == "sync: closed its channel and stayed"


async def test_a_program_that_cannot_start_says_why(tmp_path):
    with pytest.raises(WorkerFailed, match=r"broken: exited with status 1: ModuleNotFoundError: No module named"):
        async with running(BROKEN, tmp_path):
            pass


async def test_a_program_that_does_not_become_ready_is_ended(tmp_path):
    with pytest.raises(WorkerFailed, match=r"mute: not ready within 0.5 s: thinking"):
        async with running(MUTE, tmp_path):
            pass


async def test_a_program_that_ignores_every_request_to_end_is_killed(tmp_path):
    async with running(STUBBORN, tmp_path) as child:
        pass
    assert child.reason.startswith("killed by SIGKILL")


async def test_a_busy_process_ends_as_soon_as_it_is_let_go(tmp_path):
    with trio.CancelScope() as scope:
        async with running(SYNC, tmp_path) as child:
            scope.deadline = trio.current_time() + 0.2
            await child.call(Sleep(60))
    assert scope.cancelled_caught
    assert child.reason == "ended by itself"


async def test_cancelling_the_caller_leaves_no_process(tmp_path):
    with trio.CancelScope() as scope:
        async with running(ASYNC, tmp_path) as child:
            scope.deadline = trio.current_time() + 0.2
            await child.call(Sleep(60))
    assert scope.cancelled_caught
    assert not exists(child.pid)


async def test_cancelling_during_the_start_leaves_no_process(tmp_path):
    with trio.move_on_after(0.05) as scope:
        async with running(replace(MUTE, ready_s=20), tmp_path):
            pass
    assert scope.cancelled_caught


async def test_an_error_in_the_body_comes_out_as_it_is(tmp_path):
    with pytest.raises(KeyError):
        async with running(SYNC, tmp_path):
            raise KeyError("mine")


async def test_a_cancelled_call_is_cancelled_in_an_asyncio_process_and_others_go_on(tmp_path):
    async with running(ASYNC, tmp_path) as child:
        for _ in range(70):  # more than it may owe at once: each place becomes free again
            with trio.move_on_after(0):
                await child.call(Sleep(60))
        assert (await child.call(Echo("here"))).record == Said("here")


@pytest.mark.parametrize("detached", [False, True], ids=["in its group", "in a group of its own"])
async def test_what_a_process_has_started_goes_with_it(detached, tmp_path):
    async with running(ASYNC, tmp_path) as child:
        grandchild = int((await child.call(Breed(detached))).record.text)
        assert exists(grandchild)
        await failure_of(child, Die(int(signal.SIGKILL)))
        await until_gone(grandchild)


@pytest.mark.parametrize("name", ["SYNC", "ASYNC"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
async def test_a_process_dies_with_its_node(name, number, tmp_path):
    with start_node(name, tmp_path) as node:
        with trio.fail_after(20):
            pid = 0
            while not pid:  # lines before it are the node's log
                line = await trio.to_thread.run_sync(node.stdout.readline)
                pid = int(line) if line.strip().isdigit() else 0
        assert exists(pid)
        node.send_signal(number)
        await until_gone(pid)
        await trio.to_thread.run_sync(node.wait)


def start_node(name: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.process_node", name]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


async def test_a_process_sees_nothing_of_the_nodes_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLULER_TOKEN", "secret")
    with tempfile.TemporaryFile():
        async with running(SYNC, tmp_path) as child:
            seen = (await child.call(Look())).record
    assert isinstance(seen, Seen)
    assert "CELLULER_TOKEN" not in seen.environment
    assert "OMP_NUM_THREADS" in seen.environment
    assert seen.folder == str(tmp_path.resolve())
    assert len(seen.descriptors.split()) <= 4  # the standard three, and the channel


async def test_paths_that_are_not_there_are_the_callers_mistake(tmp_path):
    with pytest.raises(LocalError, match="no such folder"):
        async with open_process(SYNC, limits=LIMITS, scratch=tmp_path / "none"):
            pass
    with pytest.raises(LocalError, match="cannot be read"):
        async with open_process(SYNC, limits=LIMITS, scratch=tmp_path, readable=[tmp_path / "none"]):
            pass
