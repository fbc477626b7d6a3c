"""What a member writes down beside what was signed: inputs that prove a lie."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from celluler.learning.messages import Commit
from celluler.learning.transcript import Opening, Signatures, Transcript
from celluler_node.training import chronicle as module
from celluler_node.training.chronicle import Chronicle
from celluler_node.training.trainer import Update
from simulations.rounds import digest, roster_of
from tests.support.chains import Chain
from tests.support.heights import sign

CHAIN = Chain(roster_of(4, 9, 2))
CHAIN.until(1)
ROSTER = CHAIN.standing.roster
NAMED = {place: digest("hash", place) for place in range(4)}
DATA = {place: bytes([place]) * 4 for place in range(4)}
LIAR = 2
OURS = Update((0, 0), b"ours" + DATA[0], 0.0)


def commit(place: int, name: bytes) -> bytes:
    return sign(place, Commit(ROSTER.run, 0, ROSTER.digest, digest("root"), (digest("other"), name), (0, 0), False))


async def written(path: Path, inputs: dict[int, bytes], commits: tuple[bytes, ...]) -> list[bytes | None]:
    """By member, what is found of part 1 in a file of one height."""
    run: Any = SimpleNamespace(
        certificates=CHAIN.certificates[:1], signatures=lambda: Signatures(commits, None, ()), me=0
    )
    with path.open("wb") as file:
        chronicle = Chronicle(file, path, Opening(b"order", b"base", ROSTER.raw, 4), 2)
        await chronicle.applied(cast(Any, run), {0: b"\0\0\0\0"}, OURS)
        chronicle.prove(LIAR, 0, 1, inputs, NAMED)
        chronicle.prove(0, 0, 0, {3: b"fair"}, NAMED)  # who was accused and stayed
        await trio.to_thread.run_sync(chronicle.finish, 1 << LIAR)
    transcript = Transcript(io.BytesIO(await trio.to_thread.run_sync(chronicle.path.read_bytes)))
    transcript.scan(2)
    pieces = transcript.pieces(0)
    assert (len(transcript), transcript.whole) == (1, True)
    assert (pieces.aggregate(0), pieces.wire(0, 0), pieces.wire(3, 0)) == (bytes(4), OURS.mantissas[:4], None)
    return [pieces.wire(member, 1) for member in range(4)]


async def test_what_proves_a_lie_is_in_the_file_as_its_members_committed_to_it(tmp_path: Path) -> None:
    commits = tuple(commit(place, NAMED[place]) for place in range(4))
    assert await written(tmp_path / "all", DATA, commits) == list(DATA.values())


async def test_who_signed_two_updates_does_not_make_the_file_contradict_itself(tmp_path: Path) -> None:
    commits = tuple(commit(place, digest("another") if place == 2 else NAMED[place]) for place in range(4))
    assert await written(tmp_path / "two", DATA, commits) == [DATA[0], DATA[1], None, DATA[3]]


async def test_without_the_commits_nothing_of_the_set_is_shown(tmp_path: Path) -> None:
    assert await written(tmp_path / "none", DATA, ()) == [DATA[0], None, None, None]


async def test_no_more_is_kept_than_fits(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MAX_PROOF_BYTES", 12)
    commits = tuple(commit(place, NAMED[place]) for place in range(4))
    assert await written(tmp_path / "much", DATA, commits) == [*(DATA[place] for place in range(3)), None]
