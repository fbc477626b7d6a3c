"""Any order, any repetition, any garbage: bulletins and head books agree and never go back."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import PeerViolation
from celluler.identity import Identity, Signed, open_envelope, seal
from celluler_protocols import catalogue
from celluler_protocols.bulletin import (
    Announcement,
    Bulletin,
    BulletinLimits,
    HeadAnnouncement,
    NoteAnnouncement,
    Verdict,
    open_announcement,
)
from celluler_protocols.directory import Head, HeadBook, HeadValidator, head_key

NOW = 1_700_000_000
AUTHORS = [Identity(bytes([seed]) * 32) for seed in range(3)]


@st.composite
def announcements(draw: st.DrawFn) -> Signed[Announcement]:
    author = draw(st.sampled_from(AUTHORS))
    issued = NOW + draw(st.integers(-50, 50))
    if draw(st.booleans()):
        accused = draw(st.sampled_from(AUTHORS)).peer_id
        note = NoteAnnouncement(
            accused, b"r" * 32, b"d" * 32, "false", draw(st.integers(0, 4)), issued, issued + draw(st.integers(60, 200))
        )
        signed = open_announcement(seal(author, note))
        assert signed is not None
        return signed
    record = HeadAnnouncement(
        draw(st.sampled_from("abc")),
        draw(st.integers(0, 3)),
        b"i" * 32,
        draw(st.integers(0, 4)),
        issued,
        issued + draw(st.integers(60, 200)),
    )
    signed = open_announcement(seal(author, record))
    assert signed is not None
    return signed


@settings(max_examples=40, deadline=None)
@given(st.lists(announcements(), max_size=12), st.randoms(use_true_random=False))
def test_bulletins_agree_whatever_the_order_and_the_repetitions(
    shown: list[Signed[Announcement]], dice: object
) -> None:
    one, other = Bulletin(), Bulletin()
    again = [*shown, *shown]
    dice.shuffle(again)  # type: ignore[attr-defined]
    for signed in shown:
        one.take(signed, NOW)
    for signed in again:
        other.take(signed, NOW, metered=False)
    assert set(one.current(NOW)) == set(other.current(NOW))
    assert one.fingerprint(NOW) == other.fingerprint(NOW)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(announcements(), st.integers(-100, 300)), max_size=15))
def test_a_bulletin_stays_in_bounds_and_its_sequences_never_fall(shown: list[tuple[Signed[Announcement], int]]) -> None:
    limits = BulletinLimits(entries=4, entries_a_signer=2, notes=2, notes_a_signer=1)
    bulletin, now = Bulletin(limits), NOW
    for signed, step in shown:
        now = max(now, NOW + step)
        before = {(s.signer, s.record.subject): s.record.sequence for s in bulletin.current(now)}
        verdict = bulletin.take(signed, now)
        after = {(s.signer, s.record.subject): s.record.sequence for s in bulletin.current(now)}
        assert all(after[key] >= sequence for key, sequence in before.items() if key in after)
        assert len(bulletin) <= limits.entries
        assert sum(isinstance(s.record, NoteAnnouncement) for s in bulletin.current(now)) <= limits.notes
        assert all(s.record.expires_s > now for s in bulletin.current(now))
        assert (signed in bulletin.current(now)) or verdict is not Verdict.NEW


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=10), st.randoms()
)
def test_head_books_and_validators_agree_whatever_the_order(shown: list[tuple[int, int, int]], dice: object) -> None:
    author = AUTHORS[0]
    heads = [open_envelope(Head, seal(author, Head("n", number, bytes([i]) * 32, NOW + at))) for number, i, at in shown]
    mixed = list(heads)
    dice.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = HeadBook(), HeadBook()
    for signed in heads:
        one.see(signed)
    for signed in mixed:
        other.see(signed)
    best = one.best(author.peer_id, "n")
    assert best is not None
    assert other.best(author.peer_id, "n") == best
    values = [signed.raw for signed in mixed]
    assert values[HeadValidator(HeadBook()).select(head_key(author.peer_id, "n"), values)] == best.raw
    assert best.record.number == max(number for number, _, _ in shown)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_raises_only_violations(garbage: bytes) -> None:
    for parse in (
        open_announcement,
        lambda data: HeadValidator(HeadBook()).validate(head_key(AUTHORS[0].peer_id, "n"), data),
        lambda data: HeadValidator(HeadBook()).validate(data.decode("latin-1"), b""),
        catalogue.Answerer([b"x"], b"f" * 32).receive,
    ):
        with suppress(PeerViolation):
            parse(garbage)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=70), st.integers(1, 50))
def test_a_catalogue_session_does_not_depend_on_how_its_bytes_are_cut(held: list[bytes], cut: int) -> None:
    wire, answerer = catalogue.frames(), catalogue.Answerer(held, b"f" * 32)
    got: list[bytes] = []
    request: object = catalogue.Ask(b"0" * 32)
    while not answerer.done:
        sent = wire.encode(request)
        answer = b"".join(answerer.receive(sent[at : at + cut]) for at in range(0, len(sent), cut))
        for at in range(0, len(answer), 1000):
            for page in wire.feed(answer[at : at + 1000]):
                got += page.entries
        request = catalogue.Next()
    assert got == held
