"""A file that is given up is kept as it is, not written again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from celluler.content.disk import DiskStore
from celluler.errors import QuotaExceeded

BYTES = os.urandom(3 << 20)


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "store", 8 << 20)


def test_a_file_that_is_given_up_is_kept_itself(store: DiskStore, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(BYTES)
    number = (tmp_path / "upload").stat().st_ino
    root = store.add(tmp_path / "upload", "blob", move=True)
    assert store.path(root).stat().st_ino == number
    (tmp_path / "upload").unlink()
    assert store.path(root).read_bytes() == BYTES
    assert not store.verify(root).damaged
    store.close()


def test_a_file_that_is_not_is_copied(store: DiskStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(BYTES)
    root = store.add(tmp_path / "mine", "blob")
    assert store.path(root).stat().st_ino != (tmp_path / "mine").stat().st_ino
    assert (tmp_path / "mine").stat().st_mode & 0o200
    store.close()


def test_from_another_file_system_it_is_copied(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    (tmp_path / "upload").write_bytes(BYTES)
    monkeypatch.setattr(os, "link", refuse)
    assert store.path(store.add(tmp_path / "upload", "blob", move=True)).read_bytes() == BYTES
    store.close()


def test_a_link_somewhere_else_is_not_kept_for_the_file(store: DiskStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(BYTES)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    path = store.path(store.add(tmp_path / "link", "blob", move=True))
    assert not path.is_symlink()
    assert path.stat().st_ino != (tmp_path / "mine").stat().st_ino
    store.close()


def test_what_does_not_fit_stays_where_it_is(store: DiskStore, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(bytes(9 << 20))
    with pytest.raises(QuotaExceeded):
        store.add(tmp_path / "upload", "blob", move=True)
    assert (tmp_path / "upload").stat().st_size == 9 << 20
    assert store.used_bytes() == 0
    store.close()
