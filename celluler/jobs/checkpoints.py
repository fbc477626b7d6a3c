"""What the state of a training that has not come to its end is published as.

A checkpoint of `alice/digits:1.0.0` after seven rounds is `digits-checkpoint:1.0.0-round.7`: a name of its own, so that
nobody gets one by asking for the result, and a pre-release, so that the versions order by rounds. Who publishes it, and
whether anybody may believe it, is said elsewhere: a model names the job it came of, and a job its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from celluler.models.version import parse_version

SUFFIX = "-checkpoint"
_MAX_NAME = 64
_MARK = "round"

M = TypeVar("M")


def checkpoint_name(result: str) -> str:
    """result: the name that the training's result is to bear."""
    return result[: _MAX_NAME - len(SUFFIX)] + SUFFIX


def checkpoint_version(result: str, rounds: int) -> str:
    """result: the version that the training's result is to bear. rounds: how many are in it."""
    version = parse_version(result)
    ahead = f"{version.prerelease}.{_MARK}" if version.prerelease else _MARK
    return str(version.replace(prerelease=f"{ahead}.{rounds}", build=None))


def publisher(rounds: int, *, every: int, total: int, there: Sequence[M]) -> M | None:
    """Who publishes the state after so many rounds; None when none is due.

    every: as the job's spec says, 0 for never. total: rounds of the whole training, whose state is its result. there:
    members that took part in the last of these rounds, told alike by all. They take turns, so that one that is silent
    or lies spoils its own turns and no others.
    """
    if not every or not 0 < rounds < total or rounds % every or not there:
        return None
    return there[(rounds // every - 1) % len(there)]


def rounds_in(version: str) -> int | None:
    """How many rounds are in the checkpoint of this version; None when it is none. Raises InvalidSpec."""
    ahead, _, count = (parse_version(version).prerelease or "").rpartition(".")
    return int(count) if count.isdigit() and ahead.rpartition(".")[2] == _MARK else None
