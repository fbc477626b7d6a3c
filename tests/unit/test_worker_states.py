"""States of past rounds in a worker's scratch folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from celluler_node.processes.worker_states import KeptStates


def state(number: int) -> tuple[bytes, bytes]:
    return bytes([number]) * 8, bytes([255 - number]) * 8


def test_the_last_states_are_kept_and_the_folder_holds_no_more(tmp_path: Path) -> None:
    (tmp_path / "state-77").write_bytes(b"of a run before")
    states = KeptStates(tmp_path, 4)
    for number in range(10):
        states.keep(number, state(number))
        assert len(list(tmp_path.iterdir())) <= 4
    assert states.rounds == (6, 7, 8, 9)
    assert [states.find(number) for number in (5, 6, 9)] == [None, b"".join(state(6)), b"".join(state(9))]
    states.clear()
    assert (states.rounds, list(tmp_path.iterdir())) == ((), [])


def test_none_is_kept_unless_asked_for(tmp_path: Path) -> None:
    states = KeptStates(tmp_path, 0)
    states.keep(0, state(0))
    assert (states.find(0), list(tmp_path.iterdir())) == (None, [])


def test_a_full_disk_is_a_state_less_and_a_word_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    states = KeptStates(tmp_path, 4)
    states.keep(0, state(0))
    (tmp_path / "state-new").symlink_to("/dev/full")
    states.keep(1, state(1))
    assert "before round 1 is not kept: [Errno 28] No space left" in capfd.readouterr().err
    states.keep(2, state(2))
    assert states.rounds == (0, 2)
    assert states.find(1) is None


def test_a_file_that_was_changed_or_removed_is_no_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    states = KeptStates(tmp_path, 4)
    for number in range(3):
        states.keep(number, state(number))
    (tmp_path / "state-0").write_bytes(b"something else")
    (tmp_path / "state-1").unlink()
    assert [states.find(number) for number in range(3)] == [None, None, b"".join(state(2))]
    assert capfd.readouterr().err.count("is lost") == 2
    assert states.rounds == (2,)
