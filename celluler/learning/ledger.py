"""Everything signed that arrived at one height, checked as far as it can be without knowing the time.

The first message of its kind counts. A different second one from the same member is proof against it and is handed to
`equivocated`; it is never counted, except that a commit the leader chose is kept whichever of several it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from celluler.errors import ProtocolViolation
from celluler.identity import Record, Signed
from celluler.learning.evidence import Docket
from celluler.learning.inputs import check_set
from celluler.learning.links import Links
from celluler.learning.messages import (
    Body,
    BodyProposal,
    Certificate,
    Commit,
    Entry,
    Reduced,
    SetProposal,
    Status,
    Vote,
    check_quorum,
    mask,
    record_hash,
)
from celluler.learning.roster import Electorate, RosterView
from celluler.learning.standing import Standing
from celluler.learning.tally import Tally

VIEW_WINDOW = 8
"""Messages of views further ahead are not kept; they are asked for again once we are there."""
MAX_COMMIT_VARIANTS = 4
"""Commits kept of a member that signed several: any of them may be in the leader's set."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a height is given.

    standing: who takes part. mute: follow without signing anything. checks: how many parts to check in a view; with
    none, nobody is accused or expelled. voted: mask of those of whom we know that they voted for the body before.
    applicants: envelopes of the admissions to propose; welcome: whether such may be admitted now.

    expected: whether a member may still be waited for; present: whether it was heard from just now; has_checked:
    whether it says so of this round and a view. proofs, failures: how many members say that they hold proof against
    one, or that it does not serve; condemned, failing: whether we do, or enough of them. suspects (latest last), tardy
    (did not say in time that they had checked), links and docket outlive the height.
    """

    standing: Standing
    me: int
    state_root: bytes
    mute: bool
    checks: int
    seal: Callable[[Record], bytes]
    voted: Callable[[], int]
    applicants: Callable[[], tuple[bytes, ...]]
    welcome: Callable[[tuple[bytes, ...]], bool]
    expected: Callable[[int], bool]
    present: Callable[[int], bool]
    has_checked: Callable[[int, int], bool]
    proofs: Callable[[int], int]
    condemned: Callable[[int], bool]
    failures: Callable[[int], int]
    failing: Callable[[int], bool]
    suspects: dict[int, None]
    tardy: set[int]
    links: Links
    docket: Docket

    @property
    def roster(self) -> RosterView:
        return self.standing.roster

    @property
    def electorate(self) -> Electorate:
        return self.standing.electorate

    @property
    def round(self) -> int:
        return self.standing.round

    @property
    def prev(self) -> bytes:
        return self.standing.prev

    @property
    def parts(self) -> int:
        """0 at the closing height."""
        return 0 if self.standing.closing else self.roster.rules.parts

    @property
    def votes(self) -> bool:
        """Whether we vote, lead and check in this round."""
        return not self.mute and bool((self.electorate.voters | self.electorate.trying) >> self.me & 1)

    @property
    def sends(self) -> bool:
        """Whether a set of this round may name a commit of ours."""
        return not self.mute and bool(self.standing.senders >> self.me & 1)

    def leader(self, view: int) -> int:
        """Place of whoever leads a view of this round."""
        leaders = self.standing.leaders
        return leaders[(self.round + view) % len(leaders)]


class Ledger:
    """equivocated: called with (member, what it did, first, second)."""

    def __init__(self, setting: Setting, equivocated: Callable[[int, str, Signed[Any], Signed[Any]], None]) -> None:
        self.commits: dict[int, dict[bytes, Signed[Commit]]] = {}
        """By member and name; the first is the one that counts."""
        self.sets: dict[int, Signed[SetProposal]] = {}
        self.reduced: dict[tuple[int, int, int], Signed[Reduced]] = {}
        """By view, part, author."""
        self.proposals: dict[int, Signed[BodyProposal]] = {}
        self.bodies: dict[bytes, Body] = {}
        self.tallies: dict[tuple[int, int], Tally] = {}
        """By view, phase."""
        self.trials: dict[int, bytes] = {}
        """For which body those voted that only show that they are there."""
        self.claims: dict[int, int] = {}
        """The latest view in which each member was seen."""
        self.wanted: tuple[Entry, ...] = ()
        """Commits named by accusations, beside those of the sets."""
        self._setting, self._equivocated = setting, equivocated

    def add(self, member: int, signed: Signed[Any], view: int) -> bool:
        """Keep a message. view: the one we are in. True if it is new and kept.

        Raises ProtocolViolation for what no honest member signs.
        """
        record, setting = signed.record, self._setting
        if isinstance(record, Commit):
            return self._add_commit(member, record, signed, view)
        self.claim(member, record.view)
        if record.view > view + VIEW_WINDOW:
            return False
        match record:
            case SetProposal():
                self._check_leader(member, record.view)
                check_set(setting.standing, record)
                return self.keep(self.sets, record.view, member, signed)
            case Reduced():
                if record.part >= setting.parts:
                    raise ProtocolViolation(f"no part {record.part} in a round of {setting.parts}")
                return self.keep(self.reduced, (record.view, record.part, member), member, signed)
            case BodyProposal():
                return self._add_proposal(member, record, signed)
            case Vote():
                return self._add_vote(member, record, signed)
        raise ProtocolViolation(f"{type(record).__name__} is no message of a height")

    def claim(self, member: int, view: int) -> bool:
        """A member says that it is in this view; only the word of those who vote counts. True if it is news."""
        if member not in self._setting.electorate or view <= self.claims.get(member, -1):
            return False
        self.claims[member] = view
        return True

    def keep(self, table: dict[Any, Signed[Any]], key: Any, member: int, signed: Signed[Any]) -> bool:
        """The first of its kind stays; a different second one is proof against its author."""
        known = table.get(key)
        if known is None:
            table[key] = signed
            return True
        if known.record != signed.record:
            self._equivocated(member, f"two different {_PLURAL[type(signed.record)]} in one view", known, signed)
        return False

    def tally(self, view: int, phase: int) -> Tally:
        return self.tallies.setdefault((view, phase), Tally(view))

    def voters_for(self, certificate: Certificate) -> int:
        """Mask of those who voted in the end for what was certified, as far as it came here."""
        name = record_hash(certificate.body)
        found = {mark.member for mark in certificate.quorum.marks}
        found |= {member for member, body in self.trials.items() if body == name}
        return mask(found.union(*(t.voters_for(name) for (_, phase), t in self.tallies.items() if phase == 2)))

    def largest_group(self) -> tuple[int, ...]:
        """The members, ascending, of the largest group whose commits start from one state."""
        groups: dict[bytes, list[int]] = {}
        for member, kept in sorted(self.commits.items()):
            groups.setdefault(next(iter(kept.values())).record.state_root, []).append(member)
        return tuple(max(groups.items(), key=lambda group: (len(group[1]), group[0]), default=(b"", []))[1])

    def missing_commits(self, view: int) -> tuple[Entry, ...]:
        """Those named by the set of a view that are not here."""
        signed = self.sets.get(view)
        return self.absent(() if signed is None else signed.record.entries)

    def absent(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Those of them that are not here."""
        return tuple(entry for entry in entries if entry.commit not in self.commits.get(entry.member, {}))

    def commits_of(self, entries: tuple[Entry, ...]) -> list[Signed[Commit]]:
        """All of which must be here."""
        return [self.commits[entry.member][entry.commit] for entry in entries]

    def answer(self, status: Status) -> list[bytes]:
        """Every message that a member of this height says it lacks for its view."""
        view = status.view
        found: list[Signed[Any]] = [
            next(iter(kept.values())) for member, kept in self.commits.items() if not status.commits >> member & 1
        ]
        found += [
            self.commits[entry.member][entry.commit]
            for entry in status.wanted
            if entry.commit in self.commits.get(entry.member, {})
        ]
        if not status.has_set and view in self.sets:
            found.append(self.sets[view])
        if not status.has_body and view in self.proposals:
            found.append(self.proposals[view])
        found += [
            signed for (at, part, _), signed in self.reduced.items() if at == view and not status.reduced >> part & 1
        ]
        for phase, known in ((1, status.votes_1), (2, status.votes_2)):
            if (view, phase) in self.tallies:
                votes = self.tallies[view, phase].votes
                found += [signed for member, signed in votes.items() if not known >> member & 1]
        return [signed.raw for signed in found]

    def _add_commit(self, member: int, commit: Commit, signed: Signed[Commit], view: int) -> bool:
        parts = self._setting.parts
        if not self._setting.standing.senders >> member & 1:
            raise ProtocolViolation("a commit of a member that does not train in this round")
        if commit.prev != self._setting.prev:
            raise ProtocolViolation("a commit that follows another history")
        if not len(commit.hashes) == len(commit.exponents) == parts:
            raise ProtocolViolation(f"a commit of {len(commit.hashes)} parts in a round of {parts}")
        name = record_hash(commit)
        kept = self.commits.setdefault(member, {})
        if name in kept:
            return False
        if kept:
            self._equivocated(member, "two updates in one round", next(iter(kept.values())), signed)
        entry = Entry(member, name)
        wanted = entry in self.missing_commits(view) or entry in self.wanted
        if len(kept) >= (MAX_COMMIT_VARIANTS if wanted else 2):
            return False
        kept[name] = signed
        return True

    def _add_proposal(self, member: int, proposal: BodyProposal, signed: Signed[BodyProposal]) -> bool:
        self._check_leader(member, proposal.view)
        body, proof = proposal.body, proposal.proof
        if proposal.view not in self.proposals:
            self._setting.standing.check(body)
            if proof is None and len(proposal.statements) != self._setting.parts:
                raise ProtocolViolation("a body without its reducers' signatures")
            if proof is not None:
                if proof.view >= proposal.view or proposal.statements:
                    raise ProtocolViolation("a body proposed again without an earlier quorum")
                check_quorum(self._setting.electorate, proposal.round, 1, record_hash(body), proof)
            self.bodies[record_hash(body)] = body
        return self.keep(self.proposals, proposal.view, member, signed)

    def _add_vote(self, member: int, vote: Vote, signed: Signed[Vote]) -> bool:
        if member not in self._setting.electorate:
            return self._add_trial(member, vote)
        if vote.body is not None and vote.lacking:
            raise ProtocolViolation("a vote for a body that lacks parts")
        tally = self.tally(vote.view, vote.phase)
        known = tally.votes.get(member)
        if known is None:
            tally.add(member, signed)
            return True
        if known.record != vote:
            self._equivocated(member, f"two votes in phase {vote.phase} of one view", known, signed)
        return False

    def _add_trial(self, member: int, vote: Vote) -> bool:
        """The vote of one that has none yet counts for nothing, but that it is there."""
        if not self._setting.electorate.trying >> member & 1:
            raise ProtocolViolation("a vote of a member that has none in this round")
        new = vote.phase == 2 and vote.body is not None and member not in self.trials
        if new and vote.body is not None:
            self.trials[member] = vote.body
        return new

    def _check_leader(self, member: int, view: int) -> None:
        if member != self._setting.leader(view):
            raise ProtocolViolation("a proposal from a member that does not lead this view")


_PLURAL: Final = {SetProposal: "sets of inputs", Reduced: "results for one part", BodyProposal: "bodies"}
