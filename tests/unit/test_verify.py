"""What a stranger makes of transcripts, true and false, before any model is touched."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from celluler.content.digest import digest_of
from celluler.errors import LocalError, PeerViolation
from celluler.identity import open_envelope, seal
from celluler.learning.audit import Population, Replayable, draw, odds
from celluler.learning.messages import Certificate, Mark, Quorum, Vote, record_hash, signature_of
from celluler.learning.roster import MAX_ROSTER_BYTES, Roster, open_roster, seal_roster
from celluler.learning.transcript import HeightRecord, Signatures, Transcript, TranscriptWriter
from celluler.learning.verify import Archive, Link, merge
from celluler.models.manifest import describe_model, seal_manifest
from celluler_node.verifying.arithmetic import IntegerArithmetic
from celluler_node.verifying.papers import claim_of, open_papers
from simulations.rounds import identity
from tests.support.specs import as_bytes
from tests.support.transcripts import AUTHOR, COORDINATOR, SPEC, Played, play

pytestmark = pytest.mark.thorough

SIZE, ROUNDS = 4, 3


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("run"), size=SIZE, rounds=ROUNDS)


@dataclass
class Height:
    """One height of a transcript, open to be falsified."""

    certificate: Certificate
    signed: Signatures
    aggregate: dict[int, bytes]
    wires: dict[int, dict[int, bytes]]


Change = Callable[[Height], None]


def archive(played: Played, *files: io.BytesIO) -> Archive:
    """Of these files, or of all that the members wrote."""
    given = files or tuple(io.BytesIO(path.read_bytes()) for path in played.transcripts)
    return Archive([Transcript(file) for file in given], played.roster, IntegerArithmetic())


def merged(played: Played) -> io.BytesIO:
    file = io.BytesIO()
    merge(archive(played), file)
    return file


def falsified(played: Played, number: int, change: Change) -> io.BytesIO:
    """Everything that the members wrote, in one file, with a change at one height."""
    source, file = Transcript(merged(played)), io.BytesIO()
    source.scan(played.roster.rules.parts)
    writer = TranscriptWriter(file, source.opening, parts=played.roster.rules.parts)
    for place in range(len(source)):
        record, pieces = source.height(place), source.pieces(place)
        assert isinstance(record, HeightRecord)
        parts = range(len(record.certificate.body.parts))
        height = Height(
            record.certificate,
            Signatures(record.commits, record.proposal, record.statements),
            {part: data for part in parts if (data := pieces.aggregate(part))},
            {m: {part: data for part in parts if (data := pieces.wire(m, part))} for m in range(SIZE)},
        )
        if place == number:
            change(height)
        writer.add(height.certificate, height.signed, aggregate=height.aggregate, wires=height.wires)
    return file


def walked(one: Archive) -> list[Link]:
    return list(one.walk())


def refused(reason: str) -> AbstractContextManager[Any]:
    return pytest.raises(PeerViolation, match=reason)


# --- true ones -----------------------------------------------------------------------------------------------------


def test_all_that_the_members_wrote_verifies(played: Played) -> None:
    whole = archive(played)
    assert whole.complete
    links = walked(whole)
    assert [link.round for link in links] == [*range(ROUNDS + 1)]
    for link in links[:-1]:
        found = whole.examine(link)
        assert (found.updates, found.parts, found.reduced) == ((0, 1, 2, 3), SIZE, SIZE)
        assert found.false_updates == found.false_parts == found.not_by_rule == []
        assert sorted(link.reducers) == [0, 1, 2, 3]
        assert len(link.commits) == SIZE
        assert link.signed.proposal is not None
    population = Population(whole)
    for link in links:
        population.add(link)
    assert population.updates == len(population.replayable) == SIZE * ROUNDS
    assert Counter(one.carries for one in population.replayable) == {True: SIZE * (ROUNDS - 1), False: SIZE}


def test_the_files_of_all_members_make_one_that_lacks_nothing(played: Played) -> None:
    file = merged(played)
    assert merged(played).getvalue() == file.getvalue()
    one = archive(played, file)
    assert all(len(one.examine(link).updates) == len(link.commits) for link in walked(one)[:-1])


def test_one_file_says_what_is_missing_and_nothing_is_wrong(played: Played) -> None:
    one = archive(played, io.BytesIO(played.transcripts[2].read_bytes()))
    found = one.examine(walked(one)[1])
    assert (found.updates, found.parts, found.reduced) == ((2,), SIZE, 0)
    assert found.false_updates == found.not_by_rule == []


def test_a_run_cut_short_is_not_complete(played: Played) -> None:
    data = played.transcripts[0].read_bytes()
    one = archive(played, io.BytesIO(data[:-1]))
    assert not one.complete
    assert len(walked(one)) == ROUNDS


# --- false ones ----------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return bytes((data[0] ^ 1,)) + data[1:]


def test_bytes_that_nobody_committed_to_are_told_with_their_member(played: Played) -> None:
    def change(height: Height) -> None:
        height.wires[1][2] = flip(height.wires[1][2])

    one = archive(played, falsified(played, 1, change))
    found = one.examine(walked(one)[1])
    assert found.updates == (0, 2, 3)
    assert found.false_updates == [f"part 2 of what {one.name_of(1)} sent is not what it committed to"]
    assert (found.parts, found.reduced) == (SIZE, SIZE - 1)
    both = archive(played, falsified(played, 1, change), merged(played))
    assert both.examine(walked(both)[1]).updates == (0, 1, 2, 3)  # another file has it right
    file = io.BytesIO()
    merge(one, file)
    assert archive(played, file).held(1, 1) == {0, 1, 3}


def test_an_aggregate_that_nobody_certified_is_told(played: Played) -> None:
    def change(height: Height) -> None:
        height.aggregate[3] = flip(height.aggregate[3])

    one = archive(played, falsified(played, 2, change))
    found = one.examine(walked(one)[2])
    assert found.false_parts == ["part 3 of the aggregate is not what was certified"]
    assert found.reduced == SIZE  # the rule gives again what was certified, from what is here


def test_an_aggregate_that_the_rule_does_not_give_names_who_signed_it(tmp_path: Path) -> None:
    bent = play(tmp_path, rounds=1, bent=True)
    one = archive(bent)
    link = walked(one)[0]
    found = one.examine(link)
    assert (found.parts, found.reduced) == (SIZE, SIZE - 1)
    assert found.not_by_rule == [f"part 0 is not what the rule gives; {one.name_of(link.reducers[0])} signed it"]


def commits_changed(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Change:
    def apply(height: Height) -> None:
        height.signed = replace(height.signed, commits=change(height.signed.commits))

    return apply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda commits: commits[1:], "3 commits for a set of 4"),
        (lambda commits: (commits[1], commits[0], *commits[2:]), "no commit of"),
        (lambda commits: (flip(commits[0]), *commits[1:]), "."),
        (lambda commits: (commits[0][:-1] + flip(commits[0][-1:]), *commits[1:]), "verify"),
    ],
)
def test_commits_that_are_not_those_of_the_set_break_the_chain(played: Played, change: Any, reason: str) -> None:
    with refused(f"^round 1: .*{reason}"):
        walked(archive(played, falsified(played, 1, commits_changed(change))))


def test_commits_of_another_round_break_the_chain(played: Played) -> None:
    record = archive(played)._files[0].height(0)
    assert record is not None
    with refused("round 1: .* committed to another round"):
        walked(archive(played, falsified(played, 1, commits_changed(lambda _: record.commits))))


def sign_body(played: Played, body: Any, signers: int, view: int = 0) -> Certificate:
    keys = {identity(n).peer_id: identity(n) for n in range(SIZE)}
    vote = Vote(played.roster.run, body.round, view, 2, record_hash(body), 0)
    marks = [Mark(place, signature_of(seal(keys[played.roster.members[place].peer], vote))) for place in range(signers)]
    return Certificate(played.roster.run, body, Quorum(view, tuple(marks)))


def recertified(played: Played, signers: int = SIZE, **changes: Any) -> Change:
    def apply(height: Height) -> None:
        height.certificate = sign_body(played, replace(height.certificate.body, **changes), signers)

    return apply


@pytest.mark.parametrize(
    ("signers", "changes", "reason"),
    [
        (2, {}, "no quorum"),
        (4, {"prev": b"p" * 32}, "another history"),
        (4, {"set_hash": b"s" * 32}, "not those of the certified set"),
        (4, {"state_root": b"w" * 32}, "another round or state"),
        (4, {"members": 0b11}, "a body from 2 updates"),
    ],
)
def test_bodies_that_do_not_follow_break_the_chain(
    played: Played, signers: int, changes: dict[str, Any], reason: str
) -> None:
    with refused(f"round 1: .*{reason}"):
        walked(archive(played, falsified(played, 1, recertified(played, signers, **changes))))


def test_a_round_certified_without_parts_breaks_the_chain(played: Played) -> None:
    def change(height: Height) -> None:
        recertified(played, parts=())(height)
        height.aggregate, height.wires = {}, {}

    with refused("round 1: a body of 0 parts"):
        walked(archive(played, falsified(played, 1, change)))


def test_an_expulsion_counts_from_the_next_height_and_bears_at_most_b(played: Played) -> None:
    one = archive(played, falsified(played, ROUNDS, recertified(played, expelled=0b10)))
    last = walked(one)[-1]
    assert (last.body.expelled, last.after.electorate.places) == (0b10, (0, 2, 3))
    with refused("expels"):
        walked(archive(played, falsified(played, ROUNDS, recertified(played, expelled=0b110))))


def test_a_mark_that_does_not_verify_breaks_the_chain(played: Played) -> None:
    def change(height: Height) -> None:
        quorum = height.certificate.quorum
        bad = replace(quorum.marks[0], signature=flip(quorum.marks[0].signature))
        height.certificate = replace(height.certificate, quorum=replace(quorum, marks=(bad, *quorum.marks[1:])))

    with refused("round 2: .*verify"):
        walked(archive(played, falsified(played, 2, change)))


def test_two_results_certified_for_one_round_are_a_fork(played: Played) -> None:
    forged = falsified(played, ROUNDS, recertified(played, state_root=b"w" * 32))
    for files in ((forged, merged(played)), (merged(played), forged)):
        with refused("two different results"):
            walked(archive(played, *files))


def test_statements_of_nobody_or_of_other_results_are_left_out(played: Played) -> None:
    def change(height: Height) -> None:
        others = (height.signed.commits[0], b"garbage", *height.signed.statements[2:])
        height.signed = replace(height.signed, statements=others, proposal=height.signed.commits[0])

    one = archive(played, falsified(played, 0, change))
    link = walked(one)[0]
    assert sorted(link.reducers) == [2, 3]
    assert link.signed.proposal is None


def test_files_of_different_runs_are_not_taken_together(played: Played, tmp_path: Path) -> None:
    other = play(tmp_path, size=1, rounds=1)
    with pytest.raises(LocalError, match="not of one run"):
        archive(played, merged(played), merged(other))


def test_false_momentum_is_told(played: Played) -> None:
    whole = archive(played)
    population = Population(whole)
    for link in walked(whole):
        commits = tuple(
            replace(one, fresh=not one.fresh) if place == 1 else one for place, one in enumerate(link.commits)
        )
        population.add(replace(link, commits=commits))
    assert population.odd == [
        f"round 0: {whole.name_of(1)} carried momentum that nobody knows",
        f"round 1: {whole.name_of(1)} left its momentum out",
        f"round 2: {whole.name_of(1)} left its momentum out",
    ]
    assert len(population.replayable) == (SIZE - 1) * ROUNDS


# --- papers --------------------------------------------------------------------------------------------------------


def test_order_model_and_roster_must_belong_together(played: Played) -> None:
    model = claim_of(played.model())
    assert open_papers(played.opening, model).roster.digest == played.roster.digest
    other_base = seal_manifest(AUTHOR, describe_model("x", "0.1.0", as_bytes(SPEC), b"w" * 32, created_s=1))
    entries = _entries(played)
    job = digest_of(played.opening.order)

    def roster(**changes: Any) -> bytes:
        rules = replace(played.roster.rules, **changes)
        return seal_roster(COORDINATOR, run=job, job=job, entries=entries, rules=rules)

    for opening, reason in (
        (replace(played.opening, base=other_base), "did not begin from the model"),
        (replace(played.opening, dimension=7), "updates of 7 values"),
        (replace(played.opening, order=flip(played.opening.order)), "."),
        (replace(played.opening, roster=roster(rounds=ROUNDS + 1)), "the job says"),
        (replace(played.opening, roster=roster(rule="mean")), "the job says"),
        (replace(played.opening, roster=roster(parts=2)), "the job says"),
        (replace(played.opening, roster=roster(iid=False)), "the job says"),
        (replace(played.opening, roster=roster(audits=0)), "the run went by audits 0; the job says 2000"),
        (replace(played.opening, roster=roster(tolerance=0.5)), "tolerance 0.5"),
        (replace(played.opening, roster=roster(suspension=1)), "suspension 1"),
        (replace(played.opening, roster=roster(inviter=identity(9).peer_id)), "inviter"),
    ):
        with refused(reason):
            open_papers(opening, model)
    for claim, reason in (
        (replace(model, job=digest_of(b"other")), "another job"),
        (replace(model, parents=()), "trained further"),
        (replace(model, spec={"other": 1}), "trained further"),
    ):
        with refused(reason):
            open_papers(played.opening, claim)


def test_a_roster_of_another_coordinator_or_job_is_refused(played: Played, tmp_path: Path) -> None:
    other = play(tmp_path, size=1, rounds=1)
    with refused("another job"):
        open_papers(replace(played.opening, roster=other.opening.roster), None)
    stolen = seal_roster(
        identity(3), run=played.roster.run, job=played.roster.job, entries=_entries(played), rules=played.roster.rules
    )
    assert open_roster(stolen, identity(3).peer_id)
    with refused("signed by"):
        open_papers(replace(played.opening, roster=stolen), None)


def _entries(played: Played) -> tuple[bytes, ...]:
    return open_envelope(Roster, played.roster.raw, limit=MAX_ROSTER_BYTES).record.entries


# --- drawing -------------------------------------------------------------------------------------------------------

MANY = [Replayable(number, member, (0,), False) for number in range(50) for member in range(4)]


def test_a_draw_is_its_seeds_and_a_larger_one_holds_a_smaller() -> None:
    few, more = draw(MANY, 5, b"a"), draw(MANY, 50, b"a")
    assert len(few) == 5
    assert few < more
    assert draw(reversed(MANY), 5, b"a") == few != draw(MANY, 5, b"b")
    assert len(draw(MANY, 1000, b"a")) == 200


def test_every_update_is_drawn_as_often_as_any_other() -> None:
    counted = Counter(pair for seed in range(400) for pair in draw(MANY, 20, bytes((seed % 256, seed // 256))))
    assert len(counted) == 200
    assert max(counted.values()) < 80 > 40 > min(counted.values())


def test_odds_are_those_of_drawing_so_often() -> None:
    told = {one.share: one.caught for one in odds(16, 1000)}
    assert told[0.1] == pytest.approx(1 - 0.9**16)
    assert {one.caught for one in odds(0, 1000)} == {0.0}
    assert {one.caught for one in odds(1000, 1000)} == {1.0}
    assert {one.caught for one in odds(0, 0)} == {0.0}
