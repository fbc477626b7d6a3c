"""Every transcript of a model's run, found without being told where; and what strangers put in their place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from celluler.content.digest import Digest, digest_of, parse_cid
from celluler.identity import Envelope, _message, open_envelope, seal
from celluler.learning.roster import MAX_ROSTER_BYTES, Roster
from celluler.learning.sift import sift
from celluler.learning.transcript import MAX_FILE_BYTES, HeightRecord, Signatures, Transcript, TranscriptWriter
from celluler.wire import pack
from celluler_node.cli import verify_commands
from celluler_node.cli.root import run
from celluler_node.verifying.arithmetic import IntegerArithmetic
from celluler_node.verifying.sources import Gathering
from tests.support.transcripts import AUTHOR, COORDINATOR, Played, play
from tests.support.verifying import KnowingNode

pytestmark = pytest.mark.thorough

SIZE, ROUNDS = 4, 2
Told = dict[str, Any]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("run"), size=SIZE, rounds=ROUNDS)


@pytest.fixture
def node(played: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KnowingNode]:
    """Knows nothing but what a test tells it, and has neither weights nor data: no worker is started."""
    node = KnowingNode(played)
    monkeypatch.setattr(verify_commands, "open_session", node.session)
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CELLULER_CONFIG", raising=False)
    yield node
    node.close()


@pytest.fixture
def verify(node: KnowingNode, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Told]]:
    def call(*arguments: str) -> tuple[int, Told]:
        code = run(["verify", *arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out or err)

    return call


def finding(told: Told, check: str) -> Told:
    return next(one for one in told["findings"] if one["check"] == check)


def peers(played: Played) -> list[str]:
    return [member.peer for member in played.roster.members]


Verify = Callable[..., tuple[int, Told]]


def test_one_transcript_named_by_the_model_leads_to_those_of_all_members(
    played: Played, node: KnowingNode, verify: Verify
) -> None:
    named, *others = played.transcripts
    model = node.publish(played.model(transcripts=(parse_cid(node.hold(named)),)))
    for peer, path in zip(peers(played)[1:], others, strict=True):
        node.announce(peer, path)
    code, told = verify(model.reference)
    assert code == 6  # weights and data are nowhere: all but the training was looked at
    assert (told["model"], told["author"], told["ok"]) == (model.reference, AUTHOR.peer_id, True)
    assert finding(told, "transcripts") == {
        "check": "transcripts", "outcome": "ok", "checked": SIZE, "of": SIZE, "detail": "",
    }  # fmt: skip
    for check in ("papers", "certificates", "commits", "updates", "aggregates", "rule", "momentum"):
        line = finding(told, check)
        assert (line["outcome"], line["checked"]) == ("ok", line["of"]), check
    assert finding(told, "training")["outcome"] == "not checked"
    assert {one["transcript"] for one in told["transcripts"]} == {*node.blobs}
    assert [set(asked) for asked in node.asked] == [{*peers(played), AUTHOR.peer_id}]


def test_a_model_that_names_none_is_asked_of_its_author_and_then_of_the_members(
    played: Played, node: KnowingNode, verify: Verify
) -> None:
    model = node.publish(played.model())
    node.announce(AUTHOR.peer_id, played.transcripts[0])
    for peer, path in zip(peers(played)[1:], played.transcripts[1:], strict=True):
        node.announce(peer, path)
    _, told = verify(model.cid)
    assert finding(told, "rule")["checked"] == ROUNDS * SIZE
    assert finding(told, "transcripts")["checked"] == SIZE
    assert [len(asked) for asked in node.asked] == [1, SIZE]


def test_a_file_at_hand_is_used_beside_what_the_swarm_has(played: Played, node: KnowingNode, verify: Verify) -> None:
    model = node.publish(played.model())
    node.announce(peers(played)[1], played.transcripts[1])
    _, told = verify(model.reference, str(played.transcripts[0]), "--transcript", str(played.transcripts[2]))
    assert finding(told, "transcripts")["checked"] == 3
    assert finding(told, "updates")["checked"] == 3 * ROUNDS


def test_a_model_without_a_job_is_checked_as_far_as_it_goes(played: Played, node: KnowingNode, verify: Verify) -> None:
    model = node.publish(played.model(job=None))
    code, told = verify(model.reference)
    assert (code, told["ok"]) == (6, True)
    assert finding(told, "weights")["outcome"] == "ok"
    assert "names no job" in finding(told, "training")["detail"]
    assert told["transcripts"] == []


def test_nothing_is_known_where_nobody_has_a_transcript(played: Played, node: KnowingNode, verify: Verify) -> None:
    code, told = verify(node.publish(played.model()).reference)
    assert (code, told["ok"]) == (6, True)
    assert "no transcript" in finding(told, "training")["detail"]
    assert run(["verify", "alice/nothing:1.0.0"]) == 4
    assert run(["verify", node.publish(played.model()).reference, "--most", "some"]) == 2
    both = [node.publish(played.model()).reference] * 2
    assert run(["verify", *both]) == 2


def test_a_model_of_another_run_is_not_what_this_one_came_to(played: Played, node: KnowingNode, verify: Verify) -> None:
    named = (parse_cid(node.hold(played.transcripts[0])),)
    other = node.publish(played.model(parents=(digest_of(b"another"),), transcripts=named))
    code, told = verify(other.reference)
    assert code == 7
    assert finding(told, "papers")["outcome"] == "wrong"


# --- strangers ------------------------------------------------------------------------------------------------------


def rewritten(path: Path, roster_parts: int, **changes: Any) -> bytes:
    """A member's file with one thing changed: `opening`, or `wires` at height 0."""
    with path.open("rb") as file:
        source, out = Transcript(file), io.BytesIO()
        source.scan(roster_parts)
        writer = TranscriptWriter(out, changes.get("opening", source.opening), parts=roster_parts)
        for place in range(len(source)):
            record, pieces = source.height(place), source.pieces(place)
            assert isinstance(record, HeightRecord)
            parts = range(len(record.certificate.body.parts))
            wires = {m: {p: data for p in parts if (data := pieces.wire(m, p))} for m in range(SIZE)}
            if place == 0:
                wires |= changes.get("wires", {})
            writer.add(
                record.certificate,
                Signatures(() if changes.get("mute") else record.commits, record.proposal, record.statements),
                aggregate={p: data for p in parts if (data := pieces.aggregate(p))},
                wires=wires,
            )
        return out.getvalue()


def false_update(played: Played) -> dict[int, dict[int, bytes]]:
    """Somebody else's, with a bit changed."""
    with played.transcripts[0].open("rb") as file:
        source = Transcript(file)
        source.scan(played.roster.rules.parts)
        data = source.pieces(0).wire(0, 0)
    assert data is not None
    return {0: {0: bytes((data[0] ^ 1,)) + data[1:]}}


def another_run(played: Played, tmp_path: Path) -> bytes:
    (tmp_path / "other").mkdir()
    return play(tmp_path / "other", size=SIZE, rounds=1).transcripts[0].read_bytes()


def a_million_rounds(played: Played, _: Path) -> bytes:
    """Such a roster cannot even be written; so this one is put together by hand, and signed."""
    fields = msgpack.unpackb(pack(open_envelope(Roster, played.opening.roster, limit=MAX_ROSTER_BYTES).record))
    fields[-1][0] = 10**6
    body = msgpack.packb(fields)
    signature = COORDINATOR.sign(_message(Roster.KIND, body))
    opening = replace(played.opening, roster=pack(Envelope(Roster.KIND, COORDINATOR.public_key, body, signature)))
    return rewritten(played.transcripts[1], played.roster.rules.parts, opening=opening)


def another_roster(played: Played, _: Path) -> bytes:
    roster = open_envelope(Roster, played.opening.roster, limit=MAX_ROSTER_BYTES).record
    other = replace(roster, rules=replace(roster.rules, delta_ms=1234))
    opening = replace(played.opening, roster=seal(COORDINATOR, other))
    return rewritten(played.transcripts[1], played.roster.rules.parts, opening=opening)


def somebody_elses_update_changed(played: Played, _: Path) -> bytes:
    return rewritten(played.transcripts[1], played.roster.rules.parts, wires=false_update(played))


def the_same_without_commits(played: Played, _: Path) -> bytes:
    return rewritten(played.transcripts[1], played.roster.rules.parts, wires=false_update(played), mute=True)


def one_height_too_many(played: Played, _: Path) -> bytes:
    """The first round once more, after the end."""
    raw = played.transcripts[1].read_bytes()
    with played.transcripts[1].open("rb") as file:
        source = Transcript(file)
        source.scan(played.roster.rules.parts)
        closing = source.height(ROUNDS)
    assert closing is not None
    out = io.BytesIO()
    writer = TranscriptWriter(out, played.opening, parts=played.roster.rules.parts)
    writer._next = ROUNDS + 1
    start = out.tell()
    body = replace(closing.certificate.body, round=ROUNDS + 1)
    writer.add(replace(closing.certificate, body=body), Signatures())
    return raw + out.getvalue()[start:]


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (lambda *_: b"not a transcript at all", "not a transcript"),
        (lambda *_: b"celluler-transcript-1\n" + b"\xff" * 64, "a record of"),
        (another_run, "of another job's run"),
        (a_million_rounds, "rounds: not an integer in 1..1024"),
        (another_roster, "with another roster"),
        (somebody_elses_update_changed, "is not what it committed to"),
        (the_same_without_commits, "is not what it committed to"),
        (one_height_too_many, f"round {ROUNDS + 1}"),
    ],
)
def test_a_false_transcript_is_its_providers_shame_and_does_not_spoil_the_run(
    played: Played, node: KnowingNode, verify: Verify, tmp_path: Path, lie: Any, why: str
) -> None:
    (tmp_path / "lie").write_bytes(lie(played, tmp_path))
    model = node.publish(played.model(transcripts=(parse_cid(node.hold(played.transcripts[0])),)))
    node.announce(peers(played)[1], tmp_path / "lie")
    for peer, path in zip(peers(played)[2:], played.transcripts[2:], strict=True):
        node.announce(peer, path)
    code, told = verify(model.reference)
    assert (code, told["ok"]) == (6, True), told
    line = finding(told, "transcripts")
    assert (line["outcome"], line["checked"], line["of"]) == ("ok", SIZE - 1, SIZE)
    assert line["detail"].startswith(f"without {played.roster.members[1].nickname}'s: ")
    assert why in line["detail"]
    assert finding(told, "updates")["checked"] == (SIZE - 1) * ROUNDS
    (liar,) = [one for one in told["transcripts"] if one["problem"]]
    assert liar["peer"] == peers(played)[1]


def test_no_more_is_fetched_than_asked_for(played: Played, node: KnowingNode, verify: Verify) -> None:
    model = node.publish(played.model())
    for peer, path in zip(peers(played), played.transcripts, strict=True):
        node.announce(peer, path)
    node.announce(AUTHOR.peer_id, played.transcripts[0])
    room = sum(path.stat().st_size for path in played.transcripts[:2]) + 100
    _, told = verify(model.reference, "--most", str(room))
    line = finding(told, "transcripts")
    assert line["checked"] == 2
    assert "more than was asked for" in line["detail"]


async def test_what_one_transcript_does_not_use_of_the_budget_is_left_for_the_next(
    played: Played, tmp_path: Path
) -> None:
    allowed: list[int] = []
    files = {digest_of(bytes((place,))): path for place, path in enumerate(played.transcripts)}

    async def fetch(root: Digest, at_most: int) -> Path:
        allowed.append(at_most)
        return files[root]

    async def find(*_: Any) -> list[Any]:
        return []

    gathering = Gathering(digest_of(played.opening.order), find, fetch, MAX_FILE_BYTES + 1)
    await gathering.name(files)
    assert allowed[0] == MAX_FILE_BYTES
    used = [path.stat().st_size for path in played.transcripts]
    assert sorted(allowed, reverse=True) == allowed
    assert allowed[-1] == MAX_FILE_BYTES + 1 - sum(used[:-1])
    assert gathering.most_bytes == MAX_FILE_BYTES + 1 - sum(used)


def test_honest_files_pass_the_sieve(played: Played) -> None:
    files = [Transcript(io.BytesIO(path.read_bytes())) for path in played.transcripts]
    assert sift(files, (), played.roster, IntegerArithmetic()) == ("",) * SIZE
    assert sift((), files, played.roster, IntegerArithmetic()) == ()
