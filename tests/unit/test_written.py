import os

import pytest

from celluler.errors import WorkerFailed
from celluler_node.processes.written import written


def test_what_a_process_wrote_is_taken_by_the_name_that_it_was_told(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    assert written(tmp_path, "weights") == tmp_path / "weights"


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symlink", "link"])
def test_another_file_under_that_name_is_not_taken(make, tmp_path):
    (tmp_path / "key").write_bytes(b"private")
    (tmp_path / "scratch").mkdir()
    make(tmp_path / "key", tmp_path / "scratch" / "weights")
    with pytest.raises(WorkerFailed, match="plain file"):
        written(tmp_path / "scratch", "weights")


def test_a_folder_a_pipe_and_nothing_are_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "nothing"):
        with pytest.raises(WorkerFailed):
            written(tmp_path, name)
