"""A training that is shown: two members that work, one that is never counted, one that goes away."""

from __future__ import annotations

from celluler.content.digest import cid_of, digest_of
from celluler.identity import Identity
from celluler.jobs.spec import parse_job
from celluler.jobs.telemetry import Audits, RoundFigures, Traffic, amounts, suspicions
from celluler.views import Exclusion, Job, JobLine
from celluler_node.cli.training import Training
from celluler_node.job_views import round_view
from tests.support.jobs import ALICE, BOB, JOB_YAML, NOW_S

CAROL, MALLORY = Identity(b"c" * 32), Identity(b"m" * 32)
MEMBERS = tuple(one.peer_id for one in (ALICE, BOB, CAROL, MALLORY))


def figures(number: int) -> RoundFigures:
    """Of one round: the loss halves, Mallory's update is enormous, and Carol is gone from the fourth round on."""
    here = (0, 1, 2, 3) if number < 4 else (0, 1, 3)
    return RoundFigures(
        round=number,
        views=2 if number == 4 else 1,
        seconds=2.0,
        contributed=here,
        no_weight=(3,),
        absent=() if number < 4 else (2,),
        expelled=(3,) if number == 6 else (),
        suspected=suspicions([(2, "did not answer in time")] if number == 4 else []),
        norms=amounts({place: 40.0 if place == 3 else 0.5 + 0.1 * place for place in here}),
        traffic=tuple(Traffic(place, 1 << 20, 3 << 19) for place in here),
        credits=amounts(dict.fromkeys((0, 1), 1.5 * number)),
        audits=Audits(1, (3,), (3,)) if number == 5 else Audits(1),
        loss=2.0 * 0.5**number,
        metric="accuracy",
        value=1 - 0.5**number,
    )


def training(rounds: int = 6, state: str = "Running", reason: str = "") -> Training:
    spec = parse_job(JOB_YAML)
    told = [
        JobLine(1, float(NOW_S), "Pending"),
        JobLine(2, NOW_S + 1.0, "Fetching", "fetching the model and the data"),
        JobLine(3, NOW_S + 3.0, "Running", "4 members"),
    ]
    for number in range(1, rounds + 1):
        shown = round_view(figures(number), MEMBERS)
        told.append(JobLine(3 + number, NOW_S + 3.0 + 2 * number, "Running", "", {"round": number}, shown))
    if state != "Running":
        told.append(JobLine(told[-1].cursor + 1, told[-1].at_s + 1, state, reason))
    job = Job(
        id=cid_of(digest_of(b"a job")),
        client_id="c-1",
        name="digits",
        kind="TrainJob",
        state=state,
        reason=reason,
        submitter=ALICE.peer_id,
        coordinator=BOB.peer_id,
        created_s=float(NOW_S),
        updated_s=told[-1].at_s,
        members=MEMBERS,
        excluded=(Exclusion(MEMBERS[3], "excluded with proof: two commits in round 5"),) if rounds > 5 else (),
    )
    names = {MEMBERS[0]: "alice", MEMBERS[1]: "bob", MEMBERS[3]: "mal\x1b[2Jlory"}
    return Training(job, spec.model_dump(mode="json"), tuple(told), names)
