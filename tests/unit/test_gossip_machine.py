"""The bulletin, the catalogue session and the head book, one rule at a time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from celluler.errors import BadSignature, LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import Identity, PeerId, Signed, open_envelope, seal
from celluler_protocols import catalogue
from celluler_protocols.bulletin import (
    MAX_LIFETIME_S,
    MAX_NOTE_LIFETIME_S,
    Announcement,
    Bulletin,
    BulletinLimits,
    HeadAnnouncement,
    ModelAnnouncement,
    NoteAnnouncement,
    Verdict,
    open_announcement,
)
from celluler_protocols.directory import Head, HeadBook, HeadValidator, head_key, open_head

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
NOW = 1_700_000_000


def head(
    name: str = "digits", sequence: int = 1, *, by: Identity = ALICE, number: int = 1, issued: int = NOW, life: int = 60
) -> Signed[Announcement]:
    record = HeadAnnouncement(name, number, b"i" * 32, sequence, issued, issued + life)
    signed = open_announcement(seal(by, record))
    assert signed is not None
    return signed


def test_the_newest_of_a_subject_replaces_the_older_and_never_the_other_way() -> None:
    bulletin, old, new = Bulletin(), head(sequence=1), head(sequence=2, number=2)
    assert bulletin.take(old, NOW) is Verdict.NEW
    assert bulletin.take(old, NOW) is Verdict.KNOWN
    assert bulletin.take(new, NOW) is Verdict.NEW
    assert bulletin.take(old, NOW) is Verdict.KNOWN
    assert bulletin.current(NOW) == (new,)


def test_subjects_and_signers_do_not_replace_each_other() -> None:
    bulletin = Bulletin()
    several = [head("a"), head("b"), head("a", by=BOB)]
    assert [bulletin.take(one, NOW) for one in several] == [Verdict.NEW] * 3
    assert bulletin.current(NOW) == tuple(several)


def test_an_expired_one_is_gone_and_does_not_come_back() -> None:
    bulletin = Bulletin()
    bulletin.take(head(), NOW)
    assert bulletin.current(NOW + 60) == ()
    assert bulletin.take(head(), NOW + 60) is Verdict.UNTIMELY
    assert len(bulletin) == 0


def test_an_older_one_that_lives_longer_does_not_come_back_after_the_newer_expired() -> None:
    bulletin = Bulletin()
    old, new = head(sequence=1, life=1000), head(sequence=2, life=10)
    bulletin.take(old, NOW)
    bulletin.take(new, NOW)
    assert bulletin.take(old, NOW + 20) is Verdict.KNOWN
    assert bulletin.current(NOW + 20) == ()


def test_another_clock_may_be_off_by_the_skew_and_no_more() -> None:
    assert Bulletin().take(head(issued=NOW + 120), NOW) is Verdict.NEW
    assert Bulletin().take(head(issued=NOW + 121), NOW) is Verdict.UNTIMELY


def test_a_signer_that_contradicts_itself_is_noticed_and_all_settle_on_the_same() -> None:
    one, two = head(number=1), head(number=2)
    kept = []
    for order in ((one, two), (two, one)):
        bulletin = Bulletin()
        assert bulletin.take(order[0], NOW) is Verdict.NEW
        assert bulletin.take(order[1], NOW) is Verdict.CONFLICT
        kept.append(bulletin.current(NOW))
    assert kept[0] == kept[1]


def test_a_signer_pushes_out_its_own_and_a_talkative_one_before_a_quiet_one() -> None:
    bulletin = Bulletin(BulletinLimits(entries=4, entries_a_signer=3))
    quiet = head("quiet", by=BOB)
    bulletin.take(quiet, NOW)
    for number in range(5):
        bulletin.take(head(f"n{number}"), NOW)
    assert [signed.record.subject for signed in bulletin.current(NOW)] == ["quiet", "n2", "n3", "n4"]
    bulletin.take(head("third", by=Identity(b"c" * 32)), NOW)
    assert quiet in bulletin.current(NOW)


def test_a_talkative_signer_is_throttled_and_others_are_not() -> None:
    bulletin = Bulletin(BulletinLimits(burst=2, refill_per_s=0.1))
    verdicts = [bulletin.take(head(f"n{number}"), NOW) for number in range(3)]
    assert verdicts == [Verdict.NEW, Verdict.NEW, Verdict.THROTTLED]
    assert bulletin.take(head("x", by=BOB), NOW) is Verdict.NEW
    assert bulletin.take(head("n2"), NOW, metered=False) is Verdict.NEW
    assert bulletin.take(head("n3"), NOW + 10) is Verdict.NEW


def test_impossible_announcements_are_violations_and_unknown_kinds_are_not() -> None:
    for issued, expires in ((NOW, NOW), (NOW, NOW - 1), (NOW, NOW + MAX_LIFETIME_S + 1)):
        with pytest.raises(ProtocolViolation):
            open_announcement(seal(ALICE, HeadAnnouncement("x", 1, b"i" * 32, 1, issued, expires)))
    raw = head().raw
    with pytest.raises(BadSignature):
        open_announcement(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ProtocolViolation):
        open_announcement(b"\xc0")
    assert open_announcement(seal(ALICE, Head("digits", 1, b"i" * 32, NOW))) is None


# --- notes: who was given false bytes by whom ------------------------------------------------------------------


def note(accused: PeerId, *, by: Identity = ALICE, root: bytes = b"r" * 32, life: int = 60) -> Signed[Announcement]:
    signed = open_announcement(seal(by, NoteAnnouncement(accused, root, b"d" * 32, "false chunk", 1, NOW, NOW + life)))
    assert signed is not None
    return signed


def carol(number: int) -> Identity:
    return Identity(bytes([number]) * 32)


def test_doubts_count_peers_and_not_their_words_and_fade_with_the_notes() -> None:
    bulletin, liar = Bulletin(), carol(9).peer_id
    for root in (b"r" * 32, b"s" * 32):
        bulletin.take(note(liar, root=root), NOW)
    bulletin.take(note(liar, by=BOB, life=30), NOW)
    bulletin.take(note(liar, by=carol(9)), NOW)
    assert bulletin.doubts(liar, NOW) == 2
    assert bulletin.doubts(liar, NOW + 30) == 1
    assert bulletin.doubts(liar, NOW + 60) == bulletin.doubts(BOB.peer_id, NOW) == 0


def test_a_signer_has_sixteen_notes_and_the_oldest_goes_first() -> None:
    bulletin, news = Bulletin(), head()
    bulletin.take(news, NOW)
    for number in range(1, 20):
        bulletin.take(note(carol(number).peer_id), NOW)
    told = [bulletin.doubts(carol(number).peer_id, NOW) for number in range(1, 20)]
    assert told == [0, 0, 0] + [1] * 16
    assert news in bulletin.current(NOW)


def test_notes_of_many_push_out_notes_and_never_news() -> None:
    bulletin, news = Bulletin(BulletinLimits(entries=100, notes=4, notes_a_signer=3)), head()
    bulletin.take(news, NOW)
    victims = [carol(number).peer_id for number in range(50, 56)]
    for place, accused in enumerate(victims):
        bulletin.take(note(accused, by=carol(1 if place < 3 else place)), NOW)
    assert [bulletin.doubts(accused, NOW) for accused in victims] == [0, 0, 1, 1, 1, 1]
    assert news in bulletin.current(NOW)
    assert len(bulletin) == 5


def test_a_note_lives_a_day_at_most_and_accuses_somebody() -> None:
    with pytest.raises(ProtocolViolation):
        note(BOB.peer_id, life=MAX_NOTE_LIFETIME_S + 1)
    with pytest.raises(PeerViolation):
        note(PeerId("1" * 50))


def test_a_model_and_a_dataset_of_one_name_do_not_replace_each_other() -> None:
    bulletin = Bulletin()
    for kind in ("model", "dataset"):
        record = ModelAnnouncement("x", "1.0.0", b"m" * 32, b"r" * 32, 1, "", 1, NOW, NOW + 60, kind)
        signed = open_announcement(seal(ALICE, record))
        assert signed is not None
        assert bulletin.take(signed, NOW) is Verdict.NEW
    assert len(bulletin) == 2


# --- catalogue -------------------------------------------------------------------------------------------------


async def session(held: list[bytes], ask: bytes = b"\0" * 32) -> list[bytes]:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalogue.answer_catalogue, far, held, b"f" * 32)
        return [entry async for entry in catalogue.ask_catalogue(near, ask)]
    raise AssertionError


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
async def test_a_catalogue_of_any_size_arrives_whole(count: int) -> None:
    held = [number.to_bytes(2, "big") for number in range(count)]
    assert await session(held) == held


async def test_who_holds_the_same_is_sent_nothing() -> None:
    assert await session([b"x"] * 100, ask=b"f" * 32) == []


def test_messages_out_of_order_end_the_session() -> None:
    wire = catalogue.frames()
    for script in ([catalogue.Next()], [catalogue.Page((), True)], [catalogue.Ask(b"0" * 32)] * 2):
        answerer = catalogue.Answerer([b"x"] * 100, b"f" * 32)
        with pytest.raises(ProtocolViolation):
            answerer.receive(b"".join(map(wire.encode, script)))


async def test_an_answer_that_stops_short_or_never_ends_is_refused() -> None:
    for pages, error in (([], Unavailable), ([catalogue.Page((b"x",), False)] * 2, ProtocolViolation)):
        near, far = trio.testing.memory_stream_pair()
        for page in pages:
            await far.send_all(catalogue.frames().encode(page))
        await far.send_eof()
        with pytest.raises(error):
            [entry async for entry in catalogue.ask_catalogue(near, b"0" * 32)]


# --- heads -----------------------------------------------------------------------------------------------------


def own(number: int, index: bytes = b"1" * 32, issued: int = NOW, by: Identity = ALICE) -> Signed[Head]:
    return open_envelope(Head, seal(by, Head("digits", number, index, issued)))


def test_a_lower_number_than_one_seen_is_stale() -> None:
    book = HeadBook()
    assert book.see(own(2))
    assert not book.see(own(1))
    assert book.see(own(3))
    assert book.best(ALICE.peer_id, "digits") == own(3)
    with pytest.raises(ProtocolViolation):
        HeadValidator(book).validate(head_key(ALICE.peer_id, "digits"), own(2).raw)


def test_two_indexes_under_one_number_are_proof_kept_once() -> None:
    book = HeadBook()
    for signed in (own(1, b"1" * 32), own(1, b"2" * 32), own(1, b"2" * 32), own(1, b"1" * 32, issued=NOW + 1)):
        book.see(signed)
    numbers = {(proof.author, proof.number) for proof in book.equivocations}
    assert numbers == {(ALICE.peer_id, 1)}


@pytest.mark.parametrize("indexes", [(b"1" * 32, b"2" * 32), (b"2" * 32, b"1" * 32)])
def test_a_storing_node_takes_note_of_the_head_that_it_does_not_keep(indexes: tuple[bytes, bytes]) -> None:
    key, (one, other) = head_key(ALICE.peer_id, "digits"), (own(1, index) for index in indexes)
    resolved, storing = HeadBook(), HeadBook()
    resolved.see(one)
    HeadValidator(resolved).validate(key, other.raw)
    HeadValidator(storing).select(key, [one.raw, other.raw])
    for book in (resolved, storing):
        assert [{proof.first, proof.second} for proof in book.equivocations] == [{one.raw, other.raw}]


def test_proofs_are_kept_over_a_restart_and_strangers_do_not_push_out_those_of_names_in_use() -> None:
    book = HeadBook()
    for index in (b"1" * 32, b"2" * 32):
        book.see(own(1, index))
    (proof,) = book.equivocations
    book.see(own(2))
    for seed in range(1, 100):
        by = Identity(bytes([seed]) * 32)
        book.compare(own(1, b"1" * 32, by=by), own(1, b"2" * 32, by=by))
    assert proof in book.equivocations
    assert len(book.equivocations) == 64
    again = HeadBook()
    again.load(book.dump())
    assert again.equivocations == book.equivocations
    assert again.best(ALICE.peer_id, "digits") == own(2)


def test_the_book_forgets_the_least_recent_but_not_our_own() -> None:
    book = HeadBook(capacity=2)
    book.see(own(1), pin=True)
    for seed in b"xyz":
        book.see(own(1, by=Identity(bytes([seed]) * 32)))
    assert book.best(ALICE.peer_id, "digits") == own(1)
    assert len(book.dump()) == 2
    other = HeadBook()
    other.load([*book.dump(), b"damaged"])
    assert other.dump() == book.dump()


def test_selection_prefers_number_then_one_index_then_the_later_and_renews_equals() -> None:
    judge, key = HeadValidator(HeadBook()), head_key(ALICE.peer_id, "digits")
    low, high, contrary, later = own(1), own(2), own(2, b"2" * 32), own(2, issued=NOW + 5)
    assert judge.select(key, [low.raw, high.raw]) == 1
    assert judge.select(key, [high.raw, low.raw]) == 0
    assert judge.select(key, [contrary.raw, high.raw]) == 1
    assert judge.select(key, [high.raw, contrary.raw]) == 0
    assert judge.select(key, [later.raw, high.raw]) == 0
    assert judge.select(key, [high.raw, high.raw]) == 1


def test_heads_stand_only_under_their_own_key() -> None:
    value = own(1).raw
    open_head(head_key(ALICE.peer_id, "digits"), value)
    for key in (
        "",
        "/head",
        "/head//digits",
        f"/head/{ALICE.peer_id}/",
        f"/other/{ALICE.peer_id}/digits",
        "/head/x/digits",
    ):
        with pytest.raises(ProtocolViolation):
            open_head(key, value)
    with pytest.raises(BadSignature):
        open_head(head_key(BOB.peer_id, "digits"), value)
    with pytest.raises(ProtocolViolation):
        open_head(head_key(ALICE.peer_id, "other"), value)
    for name in ("", "a/b", "x" * 65):
        with pytest.raises(LocalError):
            head_key(ALICE.peer_id, name)
