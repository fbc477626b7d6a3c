"""Who keeps a further copy of a content, decided by each peer alone and alike: a pure function of what it sees.

Every peer ranks all peers by the hash of the content's root and their ids (rendezvous hashing), so all have the same
order without a word. When fewer live peers hold a content than its aim, the first in that order who may store and
hold nothing are called at once; everyone behind them waits, the longer the further behind, and looks again before it
acts. So a call that nobody answers (no room, slow, dead) is answered by the next, and hardly ever by two.

- A provider that is no live member does not count: a record in the DHT outlives its peer by days.
- A lack must last before anybody acts, and a copy is given up only above the aim plus a slack and after a long time:
  a peer that restarts, or a swarm that parts and heals, makes nobody copy and drop in turns.
- Regions wanted are served first, each its share of the aim. Where nobody in a region can, others stand in.
- Peers may see different members and providers. Then one copy too many may be made, or a call go out later; the
  order is what keeps that rare. Nothing here is agreed, and no copy is lost by disagreeing.

Knows nothing of the network, of clocks, nor whether a provider tells the truth.
Source of the hashing: Thaler, Ravishankar, "Using name-based mappings to increase hit rates" (1998), section 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from celluler.identity import PeerId

DEFAULT_AIM = 3
MAX_AIM = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live member. stores: it keeps copies for others. region: its own word, may be empty."""

    peer: PeerId
    region: str = ""
    stores: bool = True


@dataclass(frozen=True, slots=True)
class Replicated:
    """A content as its author wants it kept. aim: copies in all, 0 for the default. regions: where, best first."""

    root: bytes
    size_bytes: int
    aim: int = 0
    regions: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        return min(self.aim, MAX_AIM) or DEFAULT_AIM


@dataclass(frozen=True, slots=True)
class Policy:
    """Times and slack. All peers of a swarm should agree on them.

    patience_s: a lack must last so long. jitter_s: spreads those who are called. step_s: the pause before the first
    who is not called, longer than a look and an announcement take together. slack: copies above the aim that stay.
    release_s: a surplus must last so long.
    """

    patience_s: float = 30.0
    jitter_s: float = 10.0
    step_s: float = 60.0
    slack: int = 1
    release_s: float = 3600.0


class Verdict(StrEnum):
    ENOUGH = "enough"
    """Nothing for us to do."""
    WAIT = "wait"
    """Look again at `until_s`."""
    PULL = "pull"
    FULL = "full"
    """It lacks copies and we have no room for one."""
    ABSENT = "absent"
    """No live member holds it: there is nobody to pull it from."""
    RELEASE = "release"
    """Our copy is one too many; it may go if we keep it for others alone."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What this peer saw last, for the next call. since_s: when the lack (or the surplus) was first seen."""

    lack_since_s: float | None = None
    surplus_since_s: float | None = None


NOTHING_SEEN = Seen()


@dataclass(frozen=True, slots=True)
class Decision:
    """copies: live peers that hold it, ourselves included. lacking: copies still to be made, places apart."""

    verdict: Verdict
    copies: int
    lacking: int
    seen: Seen = NOTHING_SEEN
    until_s: float = math.inf


def plan(
    now: float,
    want: Replicated,
    members: Sequence[Candidate],
    providers: Collection[PeerId],
    own: Candidate,
    room_bytes: int,
    *,
    held: bool,
    seen: Seen = NOTHING_SEEN,
    policy: Policy = Policy(),
) -> Decision:
    """What this peer should do about one content now.

    members: the live others. providers: who is said to hold it; of them only the live count. held: we hold it, or a
    part that we are fetching. seen: of the decision before this one.
    """
    everybody = {member.peer: member for member in (*members, own)}
    claimed = {*providers} | {own.peer} if held else {*providers} - {own.peer}
    holders = [one for one in everybody.values() if one.peer in claimed]
    line = _Line(want, holders, [one for one in everybody.values() if one.stores and one.peer not in claimed])
    if held:
        return _surplus(now, line, own, seen, policy)
    turn = line.turn(own) if own.stores else None
    lacking = line.lacking
    if turn is None or not lacking:
        return Decision(Verdict.ENOUGH, len(holders), lacking)
    if not holders:
        return Decision(Verdict.ABSENT, 0, lacking)
    since = now if seen.lack_since_s is None else seen.lack_since_s
    if want.size_bytes > room_bytes:
        return Decision(Verdict.FULL, len(holders), lacking, Seen(since))
    until = since + policy.patience_s + policy.step_s * math.log2(1 + turn) + policy.jitter_s * _chance(want.root, own)
    if now >= until:
        return Decision(Verdict.PULL, len(holders), lacking, Seen(since))
    return Decision(Verdict.WAIT, len(holders), lacking, Seen(since), until)


def attention(want: Replicated, members: Iterable[Candidate], own: Candidate) -> int:
    """How many intervals between two looks at a content: 1 for the first in its order, more for those far behind.

    So what a content costs the DHT does not grow with the swarm, and the far ones still notice when all others fail.
    """
    near = 2 * want.copies + 2
    mine = rank(want.root, own.peer)
    ahead = [member for member in members if member.stores and rank(want.root, member.peer) < mine]
    place = len(ahead)
    if own.region in want.regions:
        place = min(place, sum(member.region == own.region for member in ahead))
    return min(120, 1 + (place // near) ** 2)


@lru_cache(maxsize=1 << 16)
def rank(root: bytes, peer: PeerId) -> bytes:
    """Smaller is called sooner: the same order at every peer, another one for every content."""
    return hashlib.sha256(root + peer.encode()).digest()


def shares(aim: int, regions: Sequence[str]) -> dict[str, int]:
    """Copies wanted in each region: as even as can be, the earlier ones getting what is over."""
    distinct = tuple(dict.fromkeys(regions))
    return {region: aim // len(distinct) + (place < aim % len(distinct)) for place, region in enumerate(distinct)}


class _Line:
    """Those who hold a content, and those who may, in its order."""

    def __init__(self, want: Replicated, holders: Iterable[Candidate], candidates: Iterable[Candidate]) -> None:
        self.want = want
        self.shares = shares(want.copies, want.regions)
        self.holders = sorted(holders, key=self._rank)
        self.candidates = sorted(candidates, key=self._rank)
        self._called: dict[str, list[Candidate]] = {
            region: _in(region, self.candidates)[: max(0, share - len(_in(region, self.holders)))]
            for region, share in self.shares.items()
        }

    @property
    def called_by_region(self) -> list[Candidate]:
        return [one for called in self._called.values() for one in called]

    @property
    def short(self) -> int:
        """Copies below the aim, wherever they are."""
        return max(0, self.want.copies - len(self.holders))

    @property
    def lacking(self) -> int:
        """Copies to be made: below the aim, or in regions that have less than their share and somebody to take it."""
        return max(self.short, len(self.called_by_region))

    def turn(self, own: Candidate) -> int | None:
        """0: called now; n: the n-th behind those called. None when no copy is missing that we could make."""
        regional = self.called_by_region
        if own in regional:
            return 0
        turns = []
        if called := self._called.get(own.region):
            turns.append(_in(own.region, self.candidates).index(own) - len(called) + 1)
        if self.short:
            others = [one for one in self.candidates if one not in regional]
            open_calls = self.short - len(regional)
            behind = others.index(own) + 1
            turns.append(max(0, behind - open_calls) if open_calls > 0 else behind + len(regional))
        return min(turns) if turns else None

    def kept(self, slack: int) -> list[Candidate]:
        """Holders whose copies should stay: each region's share, then the first in the order up to aim and slack."""
        first = [one for region, share in self.shares.items() for one in _in(region, self.holders)[:share]]
        room = max(0, self.want.copies + slack - len(first))
        return first + [one for one in self.holders if one not in first][:room]

    def _rank(self, one: Candidate) -> bytes:
        return rank(self.want.root, one.peer)


def _surplus(now: float, line: _Line, own: Candidate, seen: Seen, policy: Policy) -> Decision:
    """The last in the order goes first, and one after the other, so that nobody goes by an old count."""
    kept, copies, lacking = line.kept(policy.slack), len(line.holders), line.lacking
    if own in kept or lacking:
        return Decision(Verdict.ENOUGH, copies, lacking)
    since = now if seen.surplus_since_s is None else seen.surplus_since_s
    behind = len(line.holders) - 1 - line.holders.index(own)
    until = since + policy.release_s + 2 * policy.step_s * behind + policy.jitter_s * _chance(line.want.root, own)
    if now >= until:
        return Decision(Verdict.RELEASE, copies, 0, Seen(surplus_since_s=since))
    return Decision(Verdict.WAIT, copies, 0, Seen(surplus_since_s=since), until)


def _in(region: str, ones: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in ones if one.region == region]


def _chance(root: bytes, own: Candidate) -> float:
    """0…1, fixed for a peer and a content, independent of the order."""
    return int.from_bytes(hashlib.sha256(b"jitter" + root + own.peer.encode()).digest()[:4], "big") / 2**32
