"""Every store there is, as a fixture, and a content to put into it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe
from celluler.content.memory import MemoryStore
from celluler.content.store import Store
from tests.support.stores import QUOTA_BYTES, Opener, folder_in_memory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture(params=["memory", "disk"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    opened: list[Store] = []

    def open_one(quota_bytes: int = QUOTA_BYTES, **options: Any) -> Store:
        options = {"clock": lambda: 7.0} | options
        if request.param == "memory":
            store: Store = MemoryStore(quota_bytes, **options)
        else:
            store = DiskStore(tmp_path / f"store{len(opened)}", quota_bytes, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opener) -> Store:
    return open_store(QUOTA_BYTES)


@pytest.fixture
def data() -> bytes:
    return random.Random(1).randbytes(10 * 1024 + 23)


@pytest.fixture
def described(tmp_path: Path, data: bytes) -> Description:
    (tmp_path / "file").write_bytes(data)
    return describe(tmp_path / "file", "blob", chunk_size=1024)
