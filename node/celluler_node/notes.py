"""Who gave us something false lately, and what it was.

A note is a reason to ask others first, never a verdict: what a peer sends is verified whoever it is. What is noted here
is what we saw ourselves; what other peers say they saw is counted elsewhere.

Bounded, and gone with the process.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from celluler.content.digest import Digest
from celluler.identity import PeerId

MAX_PEERS = 256
NOTE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Note:
    """digest: of what was asked for, or `root` when the lie was about no block. at_s: Unix time."""

    peer: PeerId
    root: Digest
    digest: Digest
    reason: str
    at_s: float


class Notes:
    """The latest note of each peer, of the latest peers."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._notes: OrderedDict[PeerId, Note] = OrderedDict()

    def add(self, peer: PeerId, root: Digest, digest: Digest, reason: str) -> Note:
        note = self._notes[peer] = Note(peer, root, digest, reason, self._clock())
        self._notes.move_to_end(peer)
        if len(self._notes) > MAX_PEERS:
            self._notes.popitem(last=False)
        return note

    def suspect(self, peer: PeerId) -> bool:
        note = self._notes.get(peer)
        return note is not None and self._clock() < note.at_s + NOTE_S

    def all(self) -> tuple[Note, ...]:
        """Those that still count, oldest first."""
        return tuple(note for note in self._notes.values() if self.suspect(note.peer))
