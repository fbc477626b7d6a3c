"""`python -m simulations.attacks.live`: what becomes of each attacker among real nodes, and what it costs them.

For each one a swarm of real processes: four that train honestly on digits, one that is the attacker. What is told of
it is what the honest nodes' own users could read. The same attackers in virtual time: `python -m simulations.attacks`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from celluler.client import Client, Job
from celluler.errors import CellulerError
from celluler.learning.evidence_file import Kind, open_evidence_file
from celluler.views import TrainingRound
from simulations.attacks.catalogue import ATTACKS, EVERY, LAZY, PROTOCOL, parse_attacker
from simulations.attacks.protocol.attacker import End
from simulations.digits import Digits, write_digits
from simulations.learners import start_nodes, submit
from simulations.swarm import NodeProcess, open_swarm

MEMBERS, PLACE = 5, 2
"""Honest ones and the attacker, which is an early leader."""
ROUNDS, STEPS, AUDITS = 10, 30, 3.0
JOB_S, AGREE_S = 320.0, 20.0
"""More than the job's own deadline; and what the others then need to end it too."""
WEIGHTLESS = 0.7
"""Share of its rounds without weight, from which on its update is said not to count."""


@dataclass(frozen=True, slots=True)
class Play:
    """What came of one attacker. ended: honest nodes that succeeded; equal: all of them with the same weights.

    wronged: honest ones that were expelled or suspended. accuracy: held out, of the model that came out. wall_s: of
    the job.
    """

    attack: str
    end: End
    ended: int
    equal: bool
    wronged: tuple[str, ...]
    accuracy: float
    wall_s: float
    said: str

    @property
    def sound(self) -> bool:
        """Nobody honest was harmed, and it is what the catalogue says can become of it. Who is barred from reducing no
        user reads: it looks as if nothing had become of it, but that it is named."""
        allowed = set(PROTOCOL[self.attack].ends if self.attack in PROTOCOL else End)
        if End.BARRED in allowed:
            allowed |= {End.TOLD, End.BORNE}
        return self.ended == MEMBERS - 1 and self.equal and not self.wronged and self.end in allowed


def play(attack: str, digits: Digits, *, rounds: int = ROUNDS) -> Play:
    with open_swarm() as swarm:
        nodes = start_nodes(swarm, MEMBERS, {PLACE: attack})
        liar, began = nodes[PLACE].peer_id, time.monotonic()
        with Client(home=nodes[0].home) as client:
            audits = AUDITS if _is_audited(attack) else 0
            job = submit(client, digits, MEMBERS, rounds=rounds, inner_steps=STEPS, audits_per_round=audits)
            told = job.wait(JOB_S)
            wall_s = time.monotonic() - began
            certified = tuple(job.rounds())
            weights, accuracy = list[str](), 0.0
            if told.state == "Succeeded":
                result = job.results()
                weights.append(result.weights)
                accuracy = digits.accuracy(client.predict(result.model, digits.x).outputs.numpy())
            end = _end_of(liar, certified, _proofs(client, job, swarm.folder))
            reasons = [one.reason for one in told.excluded if one.peer == liar]
            said = told.reason if told.state != "Succeeded" else "; ".join(reasons)[:200]
        others = [node for place, node in enumerate(nodes) if place not in (0, PLACE)]
        weights += _weights(others, job.id)
        wronged = {peer for one in certified for peer in (*one.expelled, *one.suspended)} - {liar}
        return Play(attack, end, len(weights), len(set(weights)) == 1, tuple(wronged), accuracy, wall_s, said)


def _is_audited(attack: str) -> bool:
    return PROTOCOL[attack].audits if attack in PROTOCOL else attack.partition(":")[0] in LAZY


def _weights(nodes: Sequence[NodeProcess], job: str) -> Iterator[str]:
    """The weights that each of these ended with; of one that did not end well, nothing."""
    for node in nodes:
        with Client(home=node.home) as client:
            try:
                own = client.jobs.get(job)
                if own.wait(AGREE_S).state == "Succeeded":
                    yield own.results().weights
            except CellulerError:
                continue


def _proofs(client: Client, job: Job, folder: Path) -> dict[str, Kind]:
    """Of each that was excluded with evidence: what it proves. Raises for evidence that does not hold."""
    proofs: dict[str, Kind] = {}
    for one in job.refresh().excluded:
        _, found, cid = one.reason.rpartition("evidence ")
        if found:
            path = folder / f"evidence-{one.peer}"
            client.blobs.get(cid, path)
            case = open_evidence_file(path.read_bytes(), coordinator=job.info.coordinator)
            proofs[case.peer] = case.kind
    return proofs


def _end_of(liar: str, rounds: Sequence[TrainingRound], proofs: dict[str, Kind]) -> End:
    """The worst that became of it, as far as an honest node's user can read it."""
    if any(liar in one.expelled for one in rounds) or liar in proofs:
        return End.AUDITED if proofs.get(liar) == Kind.AUDIT else End.PROVEN
    if any(liar in one.suspended for one in rounds):
        return End.SUSPENDED
    present = [one for one in rounds if liar in one.contributed]
    if not present:
        return End.ABSENT
    if sum(liar in one.no_weight for one in present) >= WEIGHTLESS * len(present):
        return End.WEIGHTLESS
    suspected = any(liar == each.peer for one in rounds for each in one.suspected)
    return End.TOLD if suspected else End.BORNE


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.attacks.live", description=__doc__)
    parser.add_argument("attacks", nargs="*", type=_known, help="only these")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    unsound = 0
    with tempfile.TemporaryDirectory() as folder:
        digits = write_digits(Path(folder))
        for attack in given.attacks or (*PROTOCOL, *EVERY, *LAZY):
            came = play(attack, digits, rounds=given.rounds)
            unsound += not came.sound
            print(json.dumps(asdict(came)) if given.json else _line(came), flush=True)
    return 1 if unsound else 0


def _line(came: Play) -> str:
    harm = "" if came.sound else f"  UNSOUND: {came.ended} ended, equal {came.equal}, wronged {list(came.wronged)}"
    return f"{came.attack:22} {came.end.value:26} accuracy {came.accuracy:.3f}  {came.wall_s:5.1f} s{harm}  {came.said}"


def _known(attack: str) -> str:
    if attack not in PROTOCOL and attack.partition(":")[0] not in ATTACKS:
        raise argparse.ArgumentTypeError(f"no attacker is called {attack!r}")
    parse_attacker(attack)
    return attack


if __name__ == "__main__":
    sys.exit(main())
