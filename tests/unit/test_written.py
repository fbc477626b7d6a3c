import os

import pytest

from celluler.errors import WorkerFailed
from celluler_node.processes.written import written
from celluler_node.scratch import temporary_folder


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
    (tmp_path / "folder" / "inside").write_bytes(b"x")
    for name in ("folder", "pipe", "nothing", "folder/inside", "../key", str(tmp_path / "folder" / "inside"), "..", ""):
        with pytest.raises(WorkerFailed):
            written(tmp_path, name)


def test_whatever_was_made_of_a_folder_it_goes(tmp_path):
    with temporary_folder("test") as folder:
        (folder / "file").write_bytes(b"x")
        (folder / "link").symlink_to(tmp_path)
        (folder / "hidden").mkdir(mode=0o300)
        (folder / "hidden" / "inner").mkdir(mode=0)
        here = os.getcwd()
        try:
            os.chdir(folder)
            for _ in range(1500):  # beyond what a recursion of Python's bears
                os.mkdir("n" * 100)
                os.chdir("n" * 100)
        finally:
            os.chdir(here)
    assert not folder.exists()
    assert tmp_path.exists()
