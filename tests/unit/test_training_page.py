"""What is shown of a training: the page, its parts, and what is added up for it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from celluler.views import JobLine, PeerTraffic, TrainingRound, rounds_of
from celluler_node.cli.live import console_for
from celluler_node.cli.training import Training, left_s, pace, table
from celluler_node.cli.training_page import bar, page, sparkline
from tests.support.jobs import NOW_S
from tests.support.trainings import MEMBERS, training

NOW = NOW_S + 16.0

PAGE = """\
digits  vqplchre  Running
round      6 of 20  ━━━━━━━━━─────────────────────  16 s, 2.0 s a round, 27 s left
training   alice/digits-mlp:0.1.0; 20 steps of 32, adam 0.01; nk, proof-of-learning, mesh, fp32, q16; 3 to 16 peers
loss       0.03125  █▄▃▂▁▁  from 1, best 0.03125
accuracy   98.4%    ▁▅▆▇██  from 50.0%, best 98.4%
norms      0.5 to 40, median 0.6, 80 times apart
agreed in  1 view (more than one in 1 of 6 rounds)
members    3 of 4 contributed, 1 without weight
audits     6, 1 accused, 1 guilty

member                counted  no weight  absent  norm     sent  received  credits
alice zYjGbCDS              6          0       0   0.5  6.0 MiB   9.0 MiB        9
bob Xir3YWb7                6          0       0   0.6  6.0 MiB   9.0 MiB        9
NUJ933VQ                    3          0       3   0.7  3.0 MiB   4.5 MiB
mal\ufffd[2Jlory mm6uymN1        0          6       0    40  6.0 MiB   9.0 MiB

NUJ933VQ: suspected: did not answer in time in round 4
mal\ufffd[2Jlory mm6uymN1: expelled in round 6; excluded with proof: two commits in round 5; found guilty in an audit of round 5

08:00:00  Pending
08:00:01  Fetching    fetching the model and the data
08:00:03  Running     4 members
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(of: Training, *, width: int = 140, terminal: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal).print(page(of, NOW))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def test_the_page_says_it_all() -> None:
    assert drawn(training()) == PAGE


def test_before_the_first_round_there_is_a_page_too() -> None:
    shown = drawn(training(0))
    assert "0 of 20" in shown
    assert "loss" not in shown
    assert "norm" not in shown


def test_the_end_says_how_it_was_and_when() -> None:
    shown = drawn(training(3, "Failed", "two members left"))
    assert "Failed      two members left" in shown
    assert "left" not in shown.splitlines()[1]
    assert " 10 s, " in shown.splitlines()[1]


@pytest.mark.parametrize("width", [20, 60, 100])
def test_no_width_breaks_the_page(width: int) -> None:
    assert all(len(line) <= width for line in drawn(training(), width=width).splitlines())


def test_into_a_pipe_there_are_no_escape_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console_for(False).print(page(training(), NOW))
    assert "\x1b" not in capsys.readouterr().out
    assert "\x1b[" in drawn(training(), terminal=True)


def test_a_node_that_tells_figures_alone_is_shown_with_what_they_say() -> None:
    whole = training(0)
    events = [*whole.events, JobLine(4, NOW_S + 8.0, "Running", "", {"round": 1.0, "views": 1.0, "loss": 0.5})]
    shown = drawn(Training(whole.job, whole.spec, tuple(events)))
    assert "1 of 20" in shown
    assert "loss       0.5" in shown
    assert "contributed" not in shown


def test_a_round_told_twice_counts_once_as_it_was_told_last() -> None:
    lines = [JobLine(n, float(n), "Running", "", {"round": 1.0, "loss": float(n)}) for n in (1, 2)]
    assert [(one.round, one.loss) for one in rounds_of(lines)] == [(1, 2.0)]


def test_the_pace_is_that_of_the_last_rounds() -> None:
    slow_first = [TrainingRound(n, 1, seconds=60.0 if n == 1 else 2.0) for n in range(1, 5)]
    assert pace(slow_first) == 2.0
    assert pace([TrainingRound(1, 1)]) is None
    assert left_s(training(), NOW) == pytest.approx(27.0)
    assert left_s(training(), NOW + 1e6) == 0.0
    assert left_s(training(6, "Verifying"), NOW) is None


def test_bytes_of_the_whole_job_are_shown_where_rounds_tell_none() -> None:
    whole = training(0)
    told = PeerTraffic(MEMBERS[0], 5 << 20, 0)
    headings, first, *_ = table(Training(replace(whole.job, traffic=(told,)), whole.spec))
    assert dict(zip(headings, first, strict=True))["sent"] == "5.0 MiB"


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 50))
def test_a_sparkline_has_a_block_a_value_up_to_its_cells(values: list[float], cells: int) -> None:
    assert len(sparkline(values, cells)) == min(len(values), cells)


@given(st.integers(0, 2000), st.integers(1, 1024))
def test_a_bar_is_always_as_wide(done: int, total: int) -> None:
    assert len(bar(done, total)) == 30
