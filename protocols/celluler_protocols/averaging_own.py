"""What a member sent in the last rounds, kept by itself: for those who do its work again. No input or output.

Its own mantissas alone, as they were received from the node, so that nothing is copied. The oldest round goes first,
by number of rounds and by bytes. Knows nothing of streams or hashes: whoever asks compares with what was committed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from celluler.errors import Busy

KEPT_OWN_ROUNDS = 5
"""A round can be done again for four rounds, and the wire of the round before it belongs to it."""
MAX_OWN_BYTES = 1 << 30
MAX_OWN_SERVED = 4
"""Times that one peer gets the same part: two rounds need it, and either may be done again to judge an accusation."""


class OwnWires:
    """Parts of our updates, by round."""

    def __init__(self, rounds: int = KEPT_OWN_ROUNDS, max_bytes: int = MAX_OWN_BYTES) -> None:
        self._rounds, self._max_bytes = rounds, max_bytes
        self._held: dict[int, dict[int, memoryview]] = {}
        self._served: Counter[tuple[str, int, int]] = Counter()

    @property
    def held_bytes(self) -> int:
        return sum(part.nbytes for parts in self._held.values() for part in parts.values())

    def keep(self, round_number: int, parts: Mapping[int, memoryview]) -> None:
        """Parts of our update of this round. What is kept of it stays: a later view sends the same bytes again."""
        self._held[round_number] = {**parts, **self._held.get(round_number, {})}
        while len(self._held) > self._rounds or (self._held and self.held_bytes > self._max_bytes):
            oldest = min(self._held)
            del self._held[oldest]
            self._served = Counter({key: count for key, count in self._served.items() if key[1] != oldest})

    def find(self, round_number: int, part: int) -> memoryview | None:
        return self._held.get(round_number, {}).get(part)

    def serve(self, peer: str, round_number: int, part: int) -> memoryview | None:
        """For a peer that asks; None when it is not here. Raises Busy once it had that part often enough."""
        held = self.find(round_number, part)
        if held is None:
            return None
        self._served[peer, round_number, part] += 1
        if self._served[peer, round_number, part] > MAX_OWN_SERVED:
            raise Busy(f"this part was served {MAX_OWN_SERVED} times")
        return held
