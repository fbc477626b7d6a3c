"""Who gets which rows of a dataset: the same on every machine, from nothing but the data and a seed.

    iid        rows in the order of a keyed hash of their number, cut into equal stretches
    by-label   whole labels, the most frequent first, each to the member that has the fewest rows so far
    by-key     whole keys, each to the member that a keyed hash of the key names

Every row goes to exactly one member. See docs/reference/datasets.md for the definitions to the byte. Knows no files:
rows are numbers, labels and keys arrays beside them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from celluler.errors import LocalError

Rows = npt.NDArray[np.int64]
_Deal = Callable[[Rows, Rows, int, bytes], Rows]
"""(distinct values, ascending; rows of each; members; seed) -> member of each value."""

KINDS = ("iid", "by-label", "by-key")
SEED_BYTES = 32
MAX_MEMBERS = 1 << 16


def shard(
    kind: str,
    rows: int,
    members: int,
    index: int,
    seed: bytes,
    *,
    labels: Rows | None = None,
    keys: Rows | None = None,
) -> Rows:
    """The rows of member `index`, ascending. seed: 32 bytes. labels, keys: (rows,) int64, for the kind that needs them.

    Raises LocalError for a call that means nothing, and for a deal that leaves any member without a row.
    """
    if len(seed) != SEED_BYTES:
        raise LocalError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    if not (1 <= members <= MAX_MEMBERS and 0 <= index < members):
        raise LocalError(f"member {index} of {members}")
    if rows < members:
        raise LocalError(f"{rows} rows give no shard to each of {members} members")
    match kind:
        case "iid":
            return _shuffled(rows, members, index, seed)
        case "by-label":
            return _of_member(_checked(labels, rows, "labels"), members, index, seed, deal=_deal_labels)
        case "by-key":
            return _of_member(_checked(keys, rows, "keys"), members, index, seed, deal=_deal_keys)
    raise LocalError(f"no way to shard is called {kind!r}; there are {', '.join(KINDS)}")


def key_numbers(words: Iterable[str | bytes]) -> Rows:
    """The numbers that stand for keys or labels which are text or bytes. Equal words have equal numbers."""
    encoded = (word.encode("utf-8") if isinstance(word, str) else word for word in words)
    digests = b"".join(blake3(b"celluler-key-1\0" + word).digest(length=8) for word in encoded)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def _checked(numbers: Rows | None, rows: int, what: str) -> Rows:
    if numbers is None or numbers.shape != (rows,) or numbers.dtype != np.int64:
        raise LocalError(f"to shard so takes {what}: one int64 for each of {rows} rows")
    return numbers


def _shuffled(rows: int, members: int, index: int, seed: bytes) -> Rows:
    drawn = np.frombuffer(blake3(b"celluler-shard-iid-1\0", key=seed).digest(length=8 * rows), dtype="<u8")
    order = np.argsort(drawn, kind="stable")  # stable: equal draws keep the order of the rows, everywhere
    return np.sort(order[rows * index // members : rows * (index + 1) // members]).astype(np.int64, copy=False)


def _of_member(numbers: Rows, members: int, index: int, seed: bytes, *, deal: _Deal) -> Rows:
    """The rows whose label or key was dealt to this member."""
    distinct, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    owner = deal(distinct, counts, members, seed)
    if len(np.unique(owner)) < members:
        raise LocalError(f"{len(distinct)} distinct values leave one of {members} members without a row")
    return np.flatnonzero(owner[place] == index).astype(np.int64, copy=False)


def _deal_labels(distinct: Rows, counts: Rows, members: int, seed: bytes) -> Rows:
    """Longest processing time first: no member gets more than 4/3 of what the best deal would give the largest.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies, theorem 2.
    """
    first = _hash(b"celluler-shard-label-1\0", seed) % members  # else the most frequent label were always member 0's
    load = [(0, turn, (first + turn) % members) for turn in range(members)]
    owner = np.empty(len(distinct), dtype=np.int64)
    for label in np.lexsort((distinct, -counts)).tolist():
        held, turn, member = heapq.heappop(load)
        owner[label] = member
        heapq.heappush(load, (held + int(counts[label]), turn, member))
    return owner


def _deal_keys(distinct: Rows, _counts: Rows, members: int, seed: bytes) -> Rows:
    words = (number.to_bytes(8, "little", signed=True) for number in distinct.tolist())
    return np.fromiter((_hash(b"celluler-shard-key-1\0" + word, seed) % members for word in words), dtype=np.int64)


def _hash(message: bytes, seed: bytes) -> int:
    return int.from_bytes(blake3(message, key=seed).digest(length=8), "little")
