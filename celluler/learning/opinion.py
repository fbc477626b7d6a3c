"""What we hold of the other members: by proof, by experience, or because enough of them say so.

Outlives a height. Whom a body may send away follows from this: a leader asks how many agree, a voter whether it does.
"""

from __future__ import annotations

from typing import Any

from celluler.learning.evidence import Docket
from celluler.learning.links import Links
from celluler.learning.messages import Fraud, Status, open_message, places
from celluler.learning.presence import Presence
from celluler.learning.standing import Standing


class Opinion:
    """standing: that of the round we are in, the caller's to set. suspects (latest last): reducers whose part did not
    come; tardy: who did not say in time that it had checked."""

    def __init__(self, standing: Standing, presence: Presence) -> None:
        self.standing = standing
        self.docket, self.links = Docket(), Links()
        self.suspects: dict[int, None] = {}
        self.tardy: set[int] = set()
        self._presence = presence

    def condemned(self, place: int) -> bool:
        """We hold proof, or so many say they do that one of them is honest: should its inputs be kept from us alone."""
        return place in self.docket.proven or self._presence.with_proof(place) > self._b

    def proofs(self, place: int) -> int:
        """How many members say that they hold proof against one, ourselves included."""
        return self._presence.with_proof(place) + self.condemned(place)

    def failing(self, place: int) -> bool:
        """By our own experience, by a quorum's attestation, or by the word of so many that one of them is honest."""
        cut_off = self.links.counterparts(place, self.standing.round) > 2 * self._b
        return cut_off or place in self.docket.unserved or self._unserved_by(place) > self._b

    def failures(self, place: int) -> int:
        """How many members say that one does not serve, ourselves included."""
        return self._unserved_by(place) + self.failing(place)

    def has_checked(self, place: int, view: int) -> bool:
        """Whether it says so of this round and view, and everybody of whom it says to hold proof is known to us too:
        the proof may still be under way."""
        status = self._presence.status_of(place)
        if status is None or (status.round, status.view) != (self.standing.round, view) or not status.checked:
            return False
        return all(self.condemned(member) for member in places(status.proven) if self.standing.electorate.acts(member))

    def suspended(self, place: int) -> None:
        """When it comes back, it starts anew."""
        self.links.forget(place)
        self.docket.unserved.pop(place, None)

    def proofs_for(self, status: Status) -> list[bytes]:
        """What proves to be liars, or not to serve, those of whom this member does not know it yet."""
        out = self.standing.expelled
        known = [(self.docket.proven, out | status.proven), (self.docket.unserved, out | status.failing)]
        words = [
            word for proofs, bits in known for member, words in proofs.items() for word in words
            if not bits >> member & 1
        ]  # fmt: skip
        return [word for word in words if _serves(open_message(word).record, self.standing.round)]

    @property
    def _b(self) -> int:
        return self.standing.electorate.b

    def _unserved_by(self, place: int) -> int:
        return self._presence.unserved_by(place, since=dict(self.standing.back).get(place, 0))


def _serves(record: Any, round_number: int) -> bool:
    """Whether a member in this round can still make something of a proof: an accusation needs that round's inputs, so
    it serves two rounds."""
    return not isinstance(record, Fraud) or record.round + 1 >= round_number
