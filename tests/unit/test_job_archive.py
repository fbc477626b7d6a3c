"""What a node remembers of its jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from celluler.content.digest import Digest, digest_of
from celluler.jobs.states import JobLife, JobState
from celluler_node.training.archive import JobArchive, Kept
from celluler_protocols.jobs_messages import Facts, to_event
from celluler_protocols.jobs_orders import ChangeOrder
from tests.support.jobs import ALICE, NOW_S, sealed_order


def kept(order: bytes, *, roster: bytes | None = None) -> Kept:
    life = JobLife(NOW_S)
    life.move(JobState.QUEUED, NOW_S + 1, "waiting")
    changed = ChangeOrder(bytes(32), NOW_S, NOW_S + 60, None, None)
    return Kept(order, roster, True, tuple(map(to_event, life.events)), Facts((ALICE.peer_id,)), changed)


def test_what_was_saved_last_is_what_comes_back(tmp_path: Path) -> None:
    archive, order = JobArchive(tmp_path / "jobs"), sealed_order()
    assert archive.load() == []
    archive.save(digest_of(order), kept(order))
    archive.save(digest_of(order), kept(order, roster=b"roster"))
    assert archive.load() == [kept(order, roster=b"roster")]
    archive.forget(digest_of(order))
    archive.forget(digest_of(order))
    assert archive.load() == []


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x95" + bytes(8), bytes(1 << 16)])
def test_a_file_that_says_nothing_is_left_out(tmp_path: Path, garbage: bytes) -> None:
    archive, order = JobArchive(tmp_path), sealed_order()
    archive.save(digest_of(order), kept(order))
    (tmp_path / f"{Digest(bytes(32)).hex()}.job").write_bytes(garbage)
    assert archive.load() == [kept(order)]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, order = JobArchive(tmp_path), sealed_order()
    archive.save(digest_of(order), kept(order))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        archive.save(digest_of(order), kept(order, roster=b"roster"))
    assert archive.load() == [kept(order)]
    assert [path.suffix for path in tmp_path.iterdir()] == [".job"]
