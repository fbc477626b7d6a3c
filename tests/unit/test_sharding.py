"""Rows are dealt out the same on every machine: what is written here any implementation must find."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from celluler.datasets.sharding import key_numbers, shard
from celluler.errors import LocalError

SEED = bytes(range(32))
LABELS = np.array([0, 1, 2, 0, 1, 0, 3, 0, 2, 0], np.int64)
KEYS = key_numbers(["anna", "bert", "anna", "carl", "dora", "bert", "emil", "fred", "anna", "gina"])


GOLDEN = {
    "iid": [[1, 2, 4], [0, 3, 7], [5, 6, 8, 9]],
    "by-label": [[1, 2, 4, 6, 8], [0, 3, 5, 7, 9]],
    "by-key": [[0, 2, 3, 4, 8, 9], [1, 5, 6, 7]],
}


def deal(kind: str, members: int = 2, **columns: np.ndarray) -> list[list[int]]:
    return [shard(kind, 10, members, index, SEED, **columns).tolist() for index in range(members)]


def test_the_deals_are_as_documented() -> None:
    draws = np.frombuffer(blake3(b"celluler-shard-iid-1\0", key=SEED).digest(length=80), "<u8").tolist()
    order = sorted(range(10), key=lambda row: draws[row])
    assert deal("iid") == [sorted(order[:5]), sorted(order[5:])]
    assert deal("iid", 3) == GOLDEN["iid"]
    assert deal("by-label", labels=LABELS) == GOLDEN["by-label"]
    assert deal("by-key", keys=KEYS) == GOLDEN["by-key"]


def test_a_key_lies_where_its_hash_says_whatever_else_there_is() -> None:
    few = shard("by-key", 3, 2, 0, SEED, keys=KEYS[1:4])
    many = shard("by-key", 10, 2, 0, SEED, keys=KEYS)
    assert (few + 1).tolist() == [row for row in many.tolist() if row in (1, 2, 3)]


def test_the_number_of_a_word_is_the_start_of_its_hash() -> None:
    (number,) = key_numbers(["anna"]).tolist()
    assert number.to_bytes(8, "little", signed=True) == blake3(b"celluler-key-1\0anna").digest()[:8]
    assert key_numbers([b"anna"]).tolist() == [number]


def test_another_seed_deals_another_way() -> None:
    assert shard("iid", 10, 2, 0, SEED).tolist() != shard("iid", 10, 2, 0, SEED[::-1]).tolist()


def test_the_most_frequent_label_is_not_always_the_first_members() -> None:
    owners = {
        index
        for seed in range(16)
        for index in range(3)
        if 0 in shard("by-label", 10, 3, index, bytes([seed]) * 32, labels=LABELS)
    }
    assert owners == {0, 1, 2}


@pytest.mark.parametrize(
    ("kind", "members", "index", "seed", "labels", "words"),
    [
        ("sorted", 2, 0, SEED, None, "no way to shard"),
        ("iid", 2, 2, SEED, None, "member 2 of 2"),
        ("iid", 0, 0, SEED, None, "member 0 of 0"),
        ("iid", 11, 0, SEED, None, "no shard to each of 11"),
        ("iid", 2, 0, b"short", None, "32 bytes"),
        ("by-label", 2, 0, SEED, None, "labels"),
        ("by-key", 2, 0, SEED, LABELS, "keys"),
        ("by-label", 2, 0, SEED, LABELS[:9], "10 rows"),
        ("by-label", 2, 0, SEED, LABELS.astype(np.float64), "int64"),
        ("by-label", 5, 0, SEED, LABELS, "4 distinct values leave one of 5 members"),
    ],
)
def test_a_deal_that_means_nothing_is_refused(kind, members, index, seed, labels, words) -> None:
    with pytest.raises(LocalError, match=words):
        shard(kind, 10, members, index, seed, labels=labels)
