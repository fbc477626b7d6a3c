"""Whatever the data: every row goes to exactly one member, and everybody agrees which."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celluler.datasets.sharding import shard
from celluler.errors import LocalError

SEEDS = st.binary(min_size=32, max_size=32)
VALUES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), min_size=1, max_size=200).map(
    lambda values: np.array(values, np.int64)
)
MEMBERS = st.integers(1, 8)


def owners(shards: list[np.ndarray], rows: int) -> np.ndarray:
    """Of each row its member; asserts that the shards are a partition in ascending order."""
    assert sorted(itertools.chain.from_iterable(one.tolist() for one in shards)) == list(range(rows))
    owner = np.full(rows, -1)
    for index, one in enumerate(shards):
        assert one.dtype == np.int64
        assert one.size
        assert (np.diff(one) > 0).all()
        owner[one] = index
    return owner


@given(st.integers(1, 300), MEMBERS, SEEDS)
def test_an_iid_deal_is_a_partition_into_equal_parts(rows: int, members: int, seed: bytes) -> None:
    assume(rows >= members)
    shards = [shard("iid", rows, members, index, seed) for index in range(members)]
    owners(shards, rows)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(VALUES, MEMBERS, SEEDS)
def test_a_label_is_on_one_member_and_the_parts_are_as_even_as_labels_allow(values, members, seed) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    assume(len(distinct) >= members)
    shards = [shard("by-label", len(values), members, index, seed, labels=values) for index in range(members)]
    owner = owners(shards, len(values))
    assert all(len(set(owner[values == label])) == 1 for label in distinct)
    assert max(map(len, shards)) - min(map(len, shards)) <= counts.max()


@given(VALUES, MEMBERS, SEEDS, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_key_is_on_one_member_in_any_order_of_the_rows(values, members, seed, random) -> None:
    try:
        shards = [shard("by-key", len(values), members, index, seed, keys=values) for index in range(members)]
    except LocalError:
        assume(False)
    owner = owners(shards, len(values))
    owner_of = {key: set(owner[values == key]) for key in values.tolist()}
    assert all(len(found) == 1 for found in owner_of.values())
    order = np.array(random.sample(range(len(values)), len(values)))
    shuffled = [shard("by-key", len(values), members, index, seed, keys=values[order]) for index in range(members)]
    assert (owners(shuffled, len(values)) == owner[order]).all()
