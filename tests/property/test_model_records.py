"""Indexes, logs, keys, searches and parts of models, whatever is done to them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from celluler.content.digest import digest_of
from celluler.content.manifest import describe
from celluler.errors import CellulerError, IntegrityError, NotFound, PeerViolation, Retracted
from celluler.identity import Identity
from celluler.models.access import FRAME_BYTES, PLAIN_FRAME_BYTES, decrypt_file, encrypt_file, new_key
from celluler.models.index import (
    VersionIndex,
    check_index,
    check_succeeds,
    drop_alias,
    extend_index,
    open_index,
    retract,
    roll_back,
    seal_index,
    set_alias,
    with_log,
)
from celluler.models.provenance import append_entry, check_agrees, check_chain, open_entry
from celluler.models.search import SORTS, Entry, Query, find, order
from celluler.models.select import pieces_of
from celluler.models.version import parse_version
from tests.unit.test_model_index import Digits

ALICE = Identity(b"a" * 32)
quick = settings(max_examples=60, deadline=None)

versions = st.builds(
    "{}.{}.{}{}".format,
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 1),
    st.sampled_from(["", "", "-rc.1", "+b"]),
)
aliases = st.sampled_from(["stable", "beta", "next"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("published"), versions, st.just("")),
        st.tuples(st.just("aliased"), versions, aliases),
        st.tuples(st.just("unaliased"), versions, aliases),
        st.tuples(st.just("rolled-back"), versions, st.just("")),
        st.tuples(st.just("retracted"), versions, st.sampled_from(["broken", "leaks"])),
    ),
    max_size=24,
)


def apply(index: VersionIndex | None, action: str, version: str, note: str) -> VersionIndex:
    if action == "published":
        return extend_index(index, Digits(version), digest_of(version.encode()))
    if index is None:
        raise NotFound("digits")
    match action:
        case "aliased":
            return set_alias(index, note, version)
        case "unaliased":
            return drop_alias(index, note)
        case "rolled-back":
            return roll_back(index, version)
    return retract(index, version, note)


def grown(done: list[tuple[str, str, str]]) -> list[tuple[VersionIndex, tuple[str, str, str]]]:
    """Every index on the way and the step that led to it; steps that are refused change nothing."""
    way: list[tuple[VersionIndex, tuple[str, str, str]]] = []
    for step in done:
        before = way[-1][0] if way else None
        try:
            after = apply(before, *step)
        except CellulerError:
            continue
        if after is not before:
            way.append((after, step))
    return way


@quick
@given(steps)
def test_whatever_is_done_to_an_index_others_take_it_and_nothing_published_is_lost(done: list[Any]) -> None:
    before: VersionIndex | None = None
    for index, _ in grown(done):
        check_index(index)
        assert open_index(seal_index(ALICE, index)).record == index
        assert index.number == (1 if before is None else before.number + 1)
        if before is not None:
            check_succeeds(before, index)
        before = index


@quick
@given(steps)
def test_a_bare_name_means_what_stands_and_the_newest_release_unless_rolled_back(done: list[Any]) -> None:
    for index, _ in grown(done):
        standing = [entry for entry in index.entries if not entry.retracted]
        if not standing:
            with pytest.raises(Retracted):
                index.find()
            continue
        found = index.find()
        assert found in standing
        if index.current is None:
            releases = [entry for entry in standing if parse_version(entry.version).prerelease is None]
            assert all(parse_version(one.version) <= parse_version(found.version) for one in releases or standing)
        else:
            assert found.version == index.current


def logged(done: list[tuple[str, str, str]]) -> tuple[VersionIndex, list[bytes]]:
    """The last index, with its log, oldest entry first."""
    envelopes: list[bytes] = []
    way = grown(done)
    assume(way)
    for at_s, (_, (action, version, note)) in enumerate(way):
        newest = open_entry(envelopes[-1]) if envelopes else None
        subject = digest_of(version.encode()) if action == "published" else None
        envelopes.append(
            append_entry(
                ALICE, newest, name="digits", at_s=at_s, action=action, version=version, subject=subject, note=note
            )
        )
    return with_log(way[-1][0], digest_of(envelopes[-1])), envelopes


@quick
@given(steps)
def test_a_log_of_what_was_done_leads_to_the_same_index(done: list[Any]) -> None:
    index, envelopes = logged(done)
    assert index.log is not None
    entries = check_chain(reversed(envelopes), ALICE.peer_id, "digits", index.log)
    check_agrees(index, [one.record for one in reversed(entries)])


@quick
@given(steps, st.data())
def test_a_log_with_anything_changed_in_it_is_refused(done: list[Any], data: st.DataObject) -> None:
    index, envelopes = logged(done)
    assert index.log is not None
    tampered = list(reversed(envelopes))
    place = data.draw(st.integers(0, len(tampered) - 1))
    match data.draw(st.sampled_from(["bit", "left out", "repeated", "exchanged"])):
        case "bit":
            at = data.draw(st.integers(0, len(tampered[place]) - 1))
            changed = bytearray(tampered[place])
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
            tampered[place] = bytes(changed)
        case "left out":
            del tampered[place]
        case "repeated":
            tampered.insert(place, tampered[place])
        case "exchanged":
            other = data.draw(st.integers(0, len(tampered) - 1))
            assume(other != place)
            tampered[place], tampered[other] = tampered[other], tampered[place]
    with pytest.raises(CellulerError):
        check_chain(tampered, ALICE.peer_id, "digits", index.log)


@quick
@given(st.binary(max_size=300))
def test_random_bytes_are_no_entry(data: bytes) -> None:
    with pytest.raises(PeerViolation):
        open_entry(data)


# --- encrypted files -------------------------------------------------------------------------------------------

sizes = st.sampled_from([0, 1, PLAIN_FRAME_BYTES]).flatmap(lambda size: st.integers(max(0, size - 2), size + 2))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=sizes, frames=st.integers(0, 1), seed=st.integers(0, 255))
@example(size=PLAIN_FRAME_BYTES, frames=1, seed=0)
@example(size=0, frames=0, seed=0)
def test_what_was_encrypted_comes_back_and_not_when_it_was_cut(
    tmp_path: Path, size: int, frames: int, seed: int
) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    size += frames * PLAIN_FRAME_BYTES
    plain.write_bytes(bytes([seed]) * size)
    key = new_key()
    digest = encrypt_file(plain, sealed, key)
    assert digest == digest_of(plain.read_bytes())
    count = max(1, -(-size // PLAIN_FRAME_BYTES))
    assert sealed.stat().st_size == size + 16 * count
    assert all(piece.length == FRAME_BYTES for piece in list(describe(sealed, "model").layout())[:-1])
    decrypt_file(sealed, back, key, plain=digest)
    assert back.read_bytes() == plain.read_bytes()
    os.truncate(sealed, random.Random(seed).randrange(sealed.stat().st_size))
    with pytest.raises(IntegrityError):
        decrypt_file(sealed, back, key)


# --- search ----------------------------------------------------------------------------------------------------

words = st.sampled_from(["", "digits", "digit", "vision", "small", "mnist digits"])
entries = st.lists(
    st.builds(
        Entry,
        manifest=st.binary(min_size=32, max_size=32),
        author=st.sampled_from([ALICE.peer_id, Identity(b"b" * 32).peer_id]),
        name=st.sampled_from(["digits", "letters", "prices"]),
        version=versions | st.text(max_size=5),
        nickname=st.sampled_from(["", "alice", "bob"]),
        tags=st.sampled_from([(), ("mnist",), ("mnist", "small")]),
        category=st.sampled_from(["", "vision"]),
        description=words,
        total_bytes=st.integers(0, 3),
        created_s=st.integers(0, 3),
        providers=st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda entry: entry.manifest,
)


@quick
@given(entries, st.sampled_from(SORTS), words, st.randoms(use_true_random=False))
def test_the_order_is_the_same_however_the_entries_came(
    known: list[Entry], sort: str, text: str, shuffle: random.Random
) -> None:
    query = Query(text=text, sort=sort)
    ordered = order(query, known)
    assert sorted(known, key=repr) == sorted(ordered, key=repr)
    shuffle.shuffle(known)
    assert order(query, known) == ordered
    assert order(query, ordered) == ordered
    assert find(query, known) == [entry for entry in ordered if entry in find(query, known)]


# --- parts -----------------------------------------------------------------------------------------------------

shapes = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, st.data())
def test_pieces_of_tensors_cover_exactly_their_bytes_and_the_header(
    tmp_path: Path, drawn: list[tuple[int, int]], data: st.DataObject
) -> None:
    tensors = {f"t{place}": np.full(shape, place, np.float32) for place, shape in enumerate(drawn)}
    save_file(tensors, str(tmp_path / "weights"))
    layout = describe(tmp_path / "weights", "model", chunk_size=1 << 10).layout()
    names = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    pieces = pieces_of(layout.manifest, names)
    assert list(pieces) == sorted(set(pieces))
    covered = {
        byte for index in pieces for byte in range(layout[index].offset, layout[index].offset + layout[index].length)
    }
    header = layout.manifest.header
    assert header is not None
    wanted = set(range(header.length))
    for tensor in layout.manifest.tensors:
        wanted |= set(range(tensor.offset, tensor.offset + tensor.length)) if tensor.name in names else set()
    assert covered == wanted
