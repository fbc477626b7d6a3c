"""What a leader proposes, and what a proposal must be: whose commits, who of them does not reduce, and the body."""

from __future__ import annotations

from celluler.errors import ProtocolViolation
from celluler.learning.course import Course
from celluler.learning.inputs import Inputs
from celluler.learning.messages import BodyProposal, check_signature, mask, open_message, places


def chosen(course: Course) -> tuple[int, ...] | None:
    """Whose commits to propose; None while it is worth waiting for more."""
    setting, standing = course.setting, course.setting.standing
    group = course.ledger.largest_group()
    if not _suffices(course, group):
        return None
    awaited = [member for member in places(standing.awaited) if setting.expected(member)]
    if course.now < course.view.grace and not set(awaited) <= course.ledger.commits.keys():
        return None
    trusted = tuple(member for member in group if member not in setting.docket.proven)
    best = trusted if _suffices(course, trusted) else group
    if course.view.number > 0:  # the view before failed: do without those that have fallen silent since they committed
        for there in (setting.present, setting.expected):
            some = tuple(member for member in best if there(member))
            if _suffices(course, some):
                return some
    return best


def barred(course: Course, members: tuple[int, ...]) -> int:
    """At most b, so that a lying leader cannot keep the work among its friends; never all that may reduce."""
    setting, electorate = course.setting, course.setting.electorate
    latest_first = [*sorted(setting.docket.proven), *reversed(setting.suspects)]
    found, able = 0, mask(members) & electorate.aggregators
    for member in dict.fromkeys(member for member in latest_first if member in members):
        more = found | 1 << member
        if more.bit_count() <= electorate.b and able & ~more:
            found = more
    return found


def check_fresh(course: Course, proposal: BodyProposal, inputs: Inputs) -> None:
    """Keep what the reducers of this view signed in a fresh body. Raises PeerViolation unless it is for this set."""
    body, setting, ledger = proposal.body, course.setting, course.ledger
    if (body.set_hash, body.members, body.state_root) != (inputs.hash, inputs.mask, inputs.state_root):
        raise ProtocolViolation("a body that is not of the leader's own set")
    for number, (part, signature) in enumerate(zip(body.parts, proposal.statements, strict=True)):
        reducer, record = inputs.reducers[number], inputs.states(setting.roster, setting.round, number, part)
        raw = check_signature(setting.roster, reducer, record, signature)
        ledger.keep(ledger.reduced, (course.view.number, number, reducer), reducer, open_message(raw))


def _suffices(course: Course, members: tuple[int, ...]) -> bool:
    """Enough of them, one of whom may reduce."""
    setting = course.setting
    reduces = not setting.parts or mask(members) & setting.electorate.aggregators
    return len(members) >= setting.standing.least and bool(reduces)
