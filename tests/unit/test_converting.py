"""What a worker that converts may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from celluler.errors import InvalidSpec
from celluler_node.converting import _resolved
from celluler_node.processes.worker_formats_words import Convert


def a_cached_model(root: Path) -> Path:
    """As the cache of Hugging Face lays it out."""
    folder, blobs = root / "models--a--b" / "snapshots" / "1234", root / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5678").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/5678")
    return folder


def test_the_cache_of_hugging_face_is_read_through_its_links(tmp_path: Path) -> None:
    folder = a_cached_model(tmp_path)
    _, readable = _resolved(Convert(str(folder), "", "celluler", "out"))
    assert readable == (folder.resolve(), (tmp_path / "models--a--b" / "blobs" / "5678").resolve())


@pytest.mark.parametrize("target", ["secret", ".", "nothing"])
def test_a_link_of_a_strangers_folder_opens_nothing_else_to_the_worker(target: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = a_cached_model(tmp_path)
    (folder / "tokenizer.json").symlink_to(tmp_path / target)
    with pytest.raises(InvalidSpec, match="a link to elsewhere"):
        _resolved(Convert(str(folder), "", "celluler", "out"))
