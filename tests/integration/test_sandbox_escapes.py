"""Hostile code inside a worker's walls: what it tries is refused, and the node knows what it should know of it."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from celluler.errors import WorkerFailed
from celluler_node.processes import landlock, seccomp, watching
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits
from celluler_node.scratch import remove
from tests.support.escapes import HOSTILE, Exceed
from tests.support.sandbox_child import Attempt

MIB = 1 << 20
LIMITS = Limits(memory_bytes=1 << 30, file_bytes=2 * MIB, open_files=64, cpu_s=60)

pytestmark = pytest.mark.skipif(
    landlock.version() < 1 or seccomp.available() is not None, reason="this kernel has no Landlock, or no seccomp"
)
x86_64_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")


@dataclass
class Place:
    scratch: Path
    given: Path
    secret: Path


@pytest.fixture
def place(tmp_path):
    for name in ("scratch", "given", "home/.ssh"):
        (tmp_path / name).mkdir(parents=True)
    secret = tmp_path / "home/.ssh/id_ed25519"
    secret.write_text("private")
    (tmp_path / "given" / "weights").write_text("given")
    return Place(tmp_path / "scratch", tmp_path / "given", secret)


@asynccontextmanager
async def hostile(place: Place, limits: Limits = LIMITS) -> AsyncIterator[Child]:
    with trio.fail_after(30):
        async with open_process(HOSTILE, limits=limits, readable=[place.given], scratch=place.scratch) as child:
            yield child


async def ask(child: Child, what: str, on: object = "-") -> str:
    return str((await child.call(Attempt(what, str(on)))).record.text)


async def outcomes(place: Place, *attempts: tuple[str, object]) -> dict[str, str]:
    async with hostile(place) as child:
        return {f"{what} {on}": await ask(child, what, on) for what, on in attempts}


def let_through(told: dict[str, str], *errors: str) -> dict[str, str]:
    """What ended otherwise than by one of these errors."""
    return {what: outcome for what, outcome in told.items() if outcome not in errors}


async def test_keys_other_files_and_other_processes_are_not_read(place):
    (place.scratch / "trap").symlink_to(place.secret)
    node = f"/proc/{os.getpid()}"
    of_node = ("environ", "maps", "mem", "cmdline", "fd", "fdinfo", "root", "cwd", "status", "task", "root/etc/passwd")
    devices = ("mem", "kmsg", "tty", "ptmx", "fuse", "kvm", "userfaultfd", "net/tun", "shm", "vda", "sda", "full")
    paths = [
        *(place.secret, place.secret.parent, f"{place.scratch}/../home/.ssh/id_ed25519", place.scratch / "trap"),
        *("/etc/passwd", "/etc/shadow", "/root", "/home", "/", "/tmp", "/var/log", "/boot", "/sys/kernel"),
        *(f"{node}/{name}" for name in of_node),
        *("/proc/1/environ", "/proc/self/mem", "/proc/self/root", "/proc/kcore", "/proc/net/tcp", "/proc/mounts"),
        *("/proc/self/environ", "/proc/self/fd", "/proc/sysrq-trigger", "/proc/self/oom_score_adj"),
        *(f"/dev/{name}" for name in devices),
        *(Path.home() / name for name in (".ssh", ".aws", ".config", ".celluler", ".bash_history")),
    ]
    present = [str(path) for path in paths if os.path.lexists(path)]  # noqa: ASYNC240  nothing else runs
    assert len(present) > 25
    told = await outcomes(
        place,
        *(("open", "\n".join(present[start : start + 10])) for start in range(0, len(present), 10)),
    )
    assert let_through(told, "all refused") == {}
    told = await outcomes(
        place,
        ("reopen", place.secret),
        ("link in", place.secret),
        *(("readlink", f"{node}/{name}") for name in ("exe", "cwd", "root")),
        *(("attributes", path) for path in (place.secret, "/etc/passwd")),
    )
    assert let_through(told, "EPERM", "EACCES", "EXDEV", "ENOENT") == {}
    assert not (place.scratch / "stolen").exists()


async def test_a_rule_of_its_own_opens_nothing(place):
    told = await outcomes(place, ("read", place.secret), ("allow everything", "-"), ("read", f"{place.secret}"))
    assert told[f"read {place.secret}"] == "EACCES"


async def test_every_system_call_of_the_table_is_refused_by_this_kernel(place):
    told = await outcomes(place, ("every denied call", "-"), ("every family", "-"), ("every family in a thread", "-"))
    assert let_through(told, "all EPERM") == {}


async def test_no_other_program_and_no_other_process(place):
    node = os.getpid()
    told = await outcomes(
        place,
        *((how, "-") for how in ("fork", "clone", "clone namespace", "exec memory", "trace me", "handle of node")),
        *(("vfork", "-"),) * (platform.machine() == "x86_64"),
        ("exec", "/bin/true"),
        ("exec scratch", place.scratch),
        *((how, node) for how in ("attach", "seize", "read memory", "kill", "thread kill", "queue", "handle")),
        *((how, node) for how in ("own signals", "limit", "renice", "affinity")),
        *(("kill", target) for target in (0, 1, -1, -node)),
        *(("unshare", flag) for flag in (0x20000, 0x80, *(1 << bit for bit in range(25, 31)))),
        *((how, "-") for how in ("outlive", "dumpable", "new filter", "type")),
        *((how, "-") for how in ("listen", "accept", "connect", "bind", "set option")),
    )
    assert let_through(told, "EPERM") == {}


async def test_the_back_ways_to_a_system_call_are_closed(place):
    if platform.machine() == "x86_64":
        assert let_through(await outcomes(place, ("machine code", "-"), ("other numbers", "-")), "EPERM") == {}
    told = await outcomes(place, ("clone3", "-"), ("load", place.scratch))
    assert list(told.values()) == ["ENOSYS", "loaded, then EPERM"]


async def test_it_inherits_three_descriptors_and_the_channel_and_no_secret(place, monkeypatch):
    monkeypatch.setenv("CELLULER_TOKEN", "private")
    leaked = os.open(place.secret, os.O_RDONLY)
    try:
        told = await outcomes(place, ("descriptors", "-"), ("environment", "-"))
    finally:
        os.close(leaked)
    assert told["descriptors -"] == "device pipe pipe socket"
    assert "private" not in told["environment -"]
    assert "CELLULER" not in told["environment -"]


async def test_descriptors_that_it_sends_do_not_pile_up_at_the_node(place):
    async with hostile(place) as child:
        before = len(os.listdir("/proc/self/fd"))
        await ask(child, "give descriptors")
        for _ in range(50):
            await ask(child, "descriptors")
        assert len(os.listdir("/proc/self/fd")) == before


async def test_memory_and_files_end_at_their_limits(place):
    large = place.scratch / "large"
    told = await outcomes(
        place,
        *((how, 100 << 30) for how in ("map", "reserve", "allocate memory")),
        ("grow", 64 * MIB),
        *((how, f"{large} {size}") for how in ("stretch", "preallocate") for size in (3 * MIB, 100 << 30)),
        ("file", f"{large} {3 * MIB}"),
    )
    assert let_through(told, "ENOMEM", "MemoryError", "EFBIG") == {}
    assert large.stat().st_size <= 2 * MIB
    assert (await outcomes(place, ("raise limits", "-")))["raise limits -"] == "all refused"


async def death(place: Place, what: str, on: object = "-", limits: Limits = LIMITS, *, limit: str | None = None) -> str:
    """The reason that the node gives, the same to whoever waits and in its log. limit: the one that it must name."""
    async with hostile(place, limits) as child:
        with pytest.raises(WorkerFailed) as caught:
            await ask(child, what, on)
        await child.ended.wait()
        assert caught.value.reason == f"hostile: {child.reason}"
        assert caught.value.limit == child.limit == limit
        return child.reason or ""


async def test_loops_waits_and_threads_without_end_end_with_the_name_of_their_limit(place):
    cases = [
        ("spin", replace(LIMITS, cpu_s=1), "processor", "processor time limit of 1 s"),
        ("spin deaf", replace(LIMITS, cpu_s=1), "processor", "processor time limit of 1 s"),
        ("sleep", replace(LIMITS, call_s=1), "time", "time limit of 1 s for one call"),
        ("threads", LIMITS, "threads", "thread limit of 80"),
    ]

    async def one(what: str, limits: Limits, limit: str, reason: str) -> None:
        assert await death(place, what, 60, limits, limit=limit) == reason

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(one, *case)


async def test_who_computes_when_nothing_is_asked_is_ended(place, monkeypatch):
    monkeypatch.setattr(watching, "UNASKED_S", 0.5)
    async with hostile(place) as child:
        assert await ask(child, "stay busy") == "done"
        await child.ended.wait()
    assert child.limit == "processor"
    assert "while it was asked for nothing" in (child.reason or "")


@pytest.mark.parametrize("how", ["fill", "nest", "hide", "many names"])
async def test_who_fills_the_disk_or_hides_there_is_ended_and_leaves_nothing(place, how):
    limits = replace(LIMITS, disk_bytes=40 * MIB)
    assert (await death(place, how, place.scratch, limits, limit="disk")).startswith("disk limit")
    await trio.to_thread.run_sync(remove, place.scratch)
    assert not place.scratch.exists()


async def test_a_limit_that_ends_a_call_only_is_named_too(place):
    async with hostile(place) as child:
        for what, on, limit in (("memory", 100 << 30, "memory"), ("write", 3 * MIB, "file")):
            with pytest.raises(WorkerFailed) as caught:
                await child.call(Exceed(what, on))
            assert caught.value.limit == limit
        assert await ask(child, "descriptors") == "device pipe pipe socket"


async def test_text_without_end_costs_the_node_nothing(place):
    async with hostile(place) as child:
        with trio.move_on_after(0.3):
            await ask(child, "flood")
    assert child.reason is not None


@x86_64_only
async def test_the_gate_of_another_architecture_is_fatal(place):
    reason = await death(place, "old gate")
    assert reason.startswith(("killed for a system call that its sandbox forbids", "killed by SIGSEGV"))


@pytest.mark.parametrize("how", ["forge", "wrong record", "wrong blobs"])
async def test_an_answer_to_nobody_or_of_another_kind_is_the_end_of_it(place, how):
    assert "broke the protocol of its channel" in await death(place, how)
