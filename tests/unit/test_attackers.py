"""Every attacker on the protocol, two of a kind among seven: it loses, and nobody honest is harmed."""

from __future__ import annotations

import pytest

from celluler.identity import Identity
from celluler.learning.effects import Send
from celluler.learning.evidence_file import open_evidence_file
from celluler.learning.messages import Commit
from celluler.learning.run import Run
from simulations.attacks.__main__ import PLACES, holds
from simulations.attacks.catalogue import ATTACKS, LAZY, PROTOCOL, listed, parse_attacker
from simulations.attacks.protocol.attacker import Attacker, End, Puppet
from simulations.attacks.protocol.disturbing import Late
from simulations.attacks.stage import MEMBERS, Stage
from simulations.attacks.stage_material import roster_of

pytestmark = pytest.mark.thorough

ROUNDS = 3


@pytest.mark.parametrize("name", [name for name, known in PROTOCOL.items() if not known.audits])
def test_a_group_bears_two_of_every_kind(name: str) -> None:
    outcome = Stage(dict.fromkeys(PLACES, name), rounds=ROUNDS).play()
    assert holds(outcome), (outcome.stalled, outcome.excluded, outcome.expelled)
    for place in PLACES:
        assert outcome.end_of(place) in PROTOCOL[name].ends, outcome
        for _, evidence in outcome.excluded[place].values():
            assert open_evidence_file(evidence).accused == place


@pytest.mark.parametrize("names", [LAZY[:2], LAZY[2:]])
def test_who_does_not_do_its_steps_is_expelled_where_everybody_is_audited(names: tuple[str, ...]) -> None:
    outcome = Stage(dict(zip(PLACES, names, strict=True)), rounds=6, audits=2 * MEMBERS).play()
    assert holds(outcome)
    for place in PLACES:
        assert outcome.end_of(place) is End.AUDITED, outcome
        assert all(open_evidence_file(proof).accused == place for _, proof in outcome.excluded[place].values())


def test_who_calls_trainers_lazy_is_expelled_and_who_shows_no_auditor_anything_is_suspended() -> None:
    outcome = Stage({1: "false-auditor", 2: "withholding-witness"}, rounds=6, audits=2 * MEMBERS).play()
    assert holds(outcome)
    assert (outcome.end_of(1), outcome.end_of(2)) == (End.PROVEN, End.SUSPENDED)


def test_nobody_honest_is_found_guilty_by_audits() -> None:
    outcome = Stage({}, rounds=ROUNDS, audits=2 * MEMBERS).play()
    assert holds(outcome)
    assert not outcome.told


def test_a_group_bears_two_of_different_kinds() -> None:
    outcome = Stage({2: "wrong-reducer", 5: "equivocating-commit"}, rounds=ROUNDS).play()
    assert holds(outcome)
    assert {outcome.end_of(2), outcome.end_of(5)} == {End.PROVEN}


def test_a_liar_about_its_update_gets_no_weight_and_is_not_expelled() -> None:
    outcome = Stage(dict.fromkeys(PLACES, "scale:-1000"), rounds=ROUNDS).play()
    assert holds(outcome)
    assert [outcome.end_of(place) for place in PLACES] == [End.WEIGHTLESS, End.WEIGHTLESS]


def test_the_catalogue_lists_every_attacker_once() -> None:
    lines = listed().splitlines()
    assert [line.split()[0].partition(":")[0] for line in lines] == [*ATTACKS, *PROTOCOL]
    assert set(LAZY) <= set(ATTACKS)
    assert all(len(line.split()) > 3 for line in lines)


def test_an_attacker_that_nobody_knows_is_refused() -> None:
    for text in ("bribery", "late:1", "wrong-reducer:2"):
        with pytest.raises(ValueError, match="no attacker is called"):
            parse_attacker(text)


def puppet(attacker: Attacker) -> tuple[Puppet, Identity]:
    roster, signers = roster_of(4, 2, 0)
    signer = signers[roster.members[0].peer]
    return Puppet(Run(roster, signer, state_root=bytes(32)), signer, attacker), signer


def test_a_puppet_without_strings_is_its_run() -> None:
    led, signer = puppet(Attacker())
    alone = Run(led.roster, signer, state_root=bytes(32))
    hashes, exponents = (bytes(32),) * 4, (0,) * 4
    assert led.start(1.0) == alone.start(1.0)
    assert led.trained(0, hashes, exponents, bytes(32), 2.0) == alone.trained(0, hashes, exponents, bytes(32), 2.0)
    assert led.next_deadline() == alone.next_deadline()
    assert (led.round, led.settled, led.report.rule) == (alone.round, alone.settled, alone.report.rule)


def test_who_is_late_says_everything_in_the_end() -> None:
    led, _ = puppet(Late(2.0))
    led.start(0.0)
    effects = led.trained(0, (bytes(32),) * 4, (0,) * 4, bytes(32), 1.0)
    assert not [effect for effect in effects if isinstance(effect, Send)]
    said = []
    while (due := led.next_deadline()) is not None and due <= 1.0 + 2 * led.delta_s:
        said += [led.own(effect) for effect in led.tick(due)]
    assert any(isinstance(record, Commit) for record in said)
