"""A confined process tries everything it should not; what it may do still works, training with torch included."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from celluler_node.processes import landlock, seccomp
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.words import Limits
from tests.support.sandbox_child import CONFINED, Attempt

LIMITS = Limits(memory_bytes=6 << 30, file_bytes=2 << 20, threads=1)

needs_landlock = pytest.mark.skipif(landlock.version() < 1, reason="this kernel has no Landlock")
needs_seccomp = pytest.mark.skipif(seccomp.available() is not None, reason=f"{seccomp.available()}")


@dataclass
class Place:
    """Where a confined process is let loose: its scratch, what it may read, and what it must not touch."""

    scratch: Path
    readable: Path
    secret: Path
    outside: Path


@pytest.fixture
def place(tmp_path):
    for name in ("scratch", "readable", "home/.ssh"):
        (tmp_path / name).mkdir(parents=True)
    secret = tmp_path / "home/.ssh/id_ed25519"
    secret.write_text("private")
    (tmp_path / "readable" / "data").write_text("given")
    return Place(tmp_path / "scratch", tmp_path / "readable", secret, tmp_path / "home")


async def outcomes(place: Place, *attempts: tuple[str, object]) -> list[str]:
    with trio.fail_after(60):
        async with open_process(CONFINED, limits=LIMITS, readable=[place.readable], scratch=place.scratch) as child:
            return [(await child.call(Attempt(what, str(on)))).record.text for what, on in attempts]


@needs_landlock
async def test_files_outside_the_allow_list_are_refused(place):
    outside = [
        ("read", place.secret),
        ("list", place.outside),
        ("read", "/etc/passwd"),
        ("read", Path(__file__).parents[2] / "pyproject.toml"),
        ("read", f"/proc/{os.getpid()}/environ"),
        ("read", "/proc/self/maps"),
        ("write", place.outside / "new"),
        ("mkdir", place.outside / "new"),
        ("unlink", place.secret),
        ("truncate", place.secret),
        ("write", place.readable / "data"),
        ("write", place.readable / "new"),
        ("symlink", place.scratch / "link"),
        ("rename", place.secret),
        ("write", "/dev/shm/new"),
    ]
    assert await outcomes(place, *outside) == ["PermissionError"] * len(outside)
    assert place.secret.read_text() == "private"
    (linked,) = await outcomes(place, ("link", place.readable / "data"))
    assert linked in ("PermissionError", "OSError")  # refused as if the two lay on different disks
    assert not (place.scratch / "linked").exists()


@needs_landlock
@needs_seccomp
async def test_what_it_was_given_it_may_use(place):
    attempts = [("read", place.readable / "data"), ("list", place.readable), ("write", place.scratch / "out")]
    attempts += [
        ("read", place.scratch / "out"),
        ("mkdir", place.scratch / "folder"),
        ("unlink", place.scratch / "out"),
    ]
    attempts += [("thread", "-"), ("write", "/dev/null"), ("read", "/proc/cpuinfo")]
    done = await outcomes(place, *attempts)
    assert [outcome for outcome in done if "Error" in outcome] == []


@needs_seccomp
async def test_sockets_of_every_family_are_refused_in_every_thread(place):
    attempts = [(family, "-") for family in ("inet", "udp", "unix", "netlink", "packet", "pair", "thread_socket")]
    assert await outcomes(place, *attempts) == ["PermissionError"] * len(attempts)


@needs_seccomp
async def test_other_programs_and_other_processes_are_refused(place):
    attempts = [("fork", "-"), ("vfork", "-")]
    attempts += [(how, "/bin/true") for how in ("exec", "spawn", "posix_spawn")]
    attempts += [(what, str(os.getpid())) for what in ("kill", "stop", "ptrace", "limit_other", "renice")]
    assert await outcomes(place, *attempts) == ["PermissionError"] * len(attempts)


@needs_seccomp
async def test_attributes_of_files_are_refused_everywhere(place):
    before = place.secret.stat()
    attempts = [(what, place.secret) for what in ("chmod", "chown", "utime")]
    assert await outcomes(place, *attempts) == ["PermissionError"] * len(attempts)
    assert place.secret.stat() == before


@needs_seccomp
async def test_walls_cannot_be_taken_down_from_inside(place):
    names = ("outlive", "unshare", "bpf", "io_uring", "userfaultfd", "keyctl", "memfd")
    assert await outcomes(place, *((name, "-") for name in names)) == ["PermissionError"] * len(names)
    assert await outcomes(place, ("raise_limit", "-")) == ["ValueError: not allowed to raise maximum limit"]


async def test_limits_hold_for_memory_and_files(place):
    memory, file = await outcomes(place, ("map", 100 << 30), ("file", place.scratch / "large"))
    assert (memory, file) == ("OSError", "OSError")
    assert (place.scratch / "large").stat().st_size <= LIMITS.file_bytes


@needs_landlock
@needs_seccomp
async def test_torch_trains_saves_loads_and_predicts_inside(place):
    assert await outcomes(place, ("train", place.scratch)) == ["done"]


async def test_a_process_reports_which_walls_stand(place):
    async with open_process(CONFINED, limits=LIMITS, scratch=place.scratch) as child:
        assert child.isolation.landlock == landlock.version()
        assert child.isolation.seccomp == (seccomp.available() is None)
        assert child.isolation.full == (landlock.version() > 0 and seccomp.available() is None)
        assert child.isolation.full or child.isolation.missing, platform.platform()
