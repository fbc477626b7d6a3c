"""Runs without certificates in virtual time: they end, agree as far as they can, and bear what they claim to bear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import LocalError
from celluler.identity import Identity, seal
from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours import Neighbours, Phase
from celluler.learning.neighbours_effects import Done, Gather, Mix, Step
from celluler.learning.neighbours_messages import Here, Model
from celluler.learning.topology import Topology
from simulations.neighbours import Outcome, Schedule, identity, play, roster_of, signers_of
from simulations.world import Network

pytestmark = pytest.mark.thorough

MEMBERS = 7
STARTS = np.random.default_rng(5).normal(size=(MEMBERS, 3)).astype(np.float32)
TARGETS = np.tile(STARTS.mean(axis=0) + 5, (MEMBERS, 1)).astype(np.float32)
ALL = tuple(Topology)


def centre_error(schedule: Schedule, outcome: Outcome) -> float:
    """How far the honest ended from their common target."""
    mean = np.mean([outcome.models[place] for place in schedule.honest], axis=0)
    return float(np.linalg.norm(mean - TARGETS[0]))


@pytest.mark.parametrize("topology", ALL)
def test_members_that_only_mix_come_to_the_mean_of_what_they_began_with(topology: Topology) -> None:
    outcome = play(Schedule(topology, STARTS, rounds=30, settling=0, mean=True))
    assert len(outcome.models) == MEMBERS
    assert outcome.spread(outcome.models) < 0.1
    # members that are a round apart for a moment move the mean by a little
    assert np.allclose(np.mean(list(outcome.models.values()), axis=0), STARTS.mean(axis=0), atol=0.1)
    assert outcome.faults == []


@pytest.mark.parametrize("topology", ALL)
def test_the_same_seed_is_the_same_run(topology: Topology) -> None:
    schedule = Schedule(topology, STARTS, TARGETS, rounds=3, network=Network(loss=0.1))
    one, two = play(schedule), play(schedule)
    assert one.trace == two.trace
    assert one.when == two.when


@given(
    topology=st.sampled_from(ALL),
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.3),
    deaths=st.dictionaries(st.integers(0, MEMBERS - 1), st.floats(0, 3), max_size=3),
    slow=st.dictionaries(st.integers(0, MEMBERS - 1), st.floats(0.2, 3), max_size=2),
    cut=st.none() | st.tuples(st.floats(0, 2), st.floats(2, 5), st.sets(st.integers(0, MEMBERS - 1)).map(tuple)),
)
@settings(max_examples=10, deadline=None)
def test_whatever_the_network_does_and_whoever_dies_the_rest_ends_trained(
    topology: Topology,
    seed: int,
    loss: float,
    deaths: dict[int, float],
    slow: dict[int, float],
    cut: tuple[float, float, tuple[int, ...]] | None,
) -> None:
    schedule = Schedule(
        topology, STARTS, TARGETS, rounds=8, seed=seed, network=Network(loss=loss, duplication=0.1), deaths=deaths,
        slow=slow, cut_off=cut,
    )  # fmt: skip
    outcome = play(schedule)
    assert set(outcome.models) >= set(schedule.honest)
    assert max(outcome.when.values()) < 8 * 2 * (2.0 + 2 * 3) + 30
    assert outcome.faults == []
    on_time = [place for place in schedule.honest if place not in slow]
    for place in on_time:
        assert np.linalg.norm(outcome.models[place] - TARGETS[0]) < np.linalg.norm(STARTS[place] - TARGETS[0])


@pytest.mark.parametrize("topology", ALL)
@pytest.mark.parametrize("liar", [0, 3])
def test_a_liar_ruins_the_mean_and_not_the_clipped_mixture(topology: Topology, liar: int) -> None:
    def lie(_: int, model: np.ndarray) -> np.ndarray:
        return (-1000 * model).astype(np.float32)

    clipping = Schedule(topology, STARTS, TARGETS, rounds=10, lies={liar: lie})
    averaging = Schedule(topology, STARTS, TARGETS, rounds=10, lies={liar: lie}, mean=True)
    assert centre_error(clipping, play(clipping)) < 2.5
    assert centre_error(averaging, play(averaging)) > 50


def test_a_dead_neighbour_costs_one_wait_and_then_nothing() -> None:
    quiet = play(Schedule(Topology.RING, STARTS, TARGETS, rounds=6))
    bereft = play(Schedule(Topology.RING, STARTS, TARGETS, rounds=6, deaths={2: 0.5}))
    assert max(bereft.when.values()) - max(quiet.when.values()) < 3.0


# --- one machine, by hand ------------------------------------------------------------------------------------------


def opened(members: int = 4, topology: Topology = Topology.RING) -> tuple[Neighbours, dict[int, Identity]]:
    roster, signers = roster_of(members, 2), signers_of(members)
    run = Neighbours(roster, signers[roster.members[0].peer], topology=topology)
    run.start(0.0)
    return run, {place: signers[roster.members[place].peer] for place in range(members)}


def model(run: Neighbours, round_number: int, mark: bytes = b"h") -> Model:
    return Model(run.roster.run, round_number, (mark * 32,), (0,))


def test_a_word_that_another_signed_is_the_fault_of_who_brought_it() -> None:
    run, signers = opened()
    raw = seal(signers[1], model(run, 0))
    (fault,) = run.receive(run.roster.members[3].peer, raw, 0.1)
    assert isinstance(fault, Fault)
    assert fault.peer == run.roster.members[3].peer
    assert run.receive(run.roster.members[1].peer, b"garbage", 0.1)[0].peer == run.roster.members[1].peer


def test_two_models_of_one_round_are_a_fault_and_the_first_one_counts() -> None:
    run, signers = opened()
    peer = run.roster.members[1].peer
    first = run.receive(peer, seal(signers[1], model(run, 0)), 0.1)
    assert isinstance(first[0], Gather)
    again = run.receive(peer, seal(signers[1], model(run, 0, b"x")), 0.2)
    assert isinstance(again[0], Fault)


def test_a_round_waits_for_who_is_alive_and_mixes_what_came_by_the_deadline() -> None:
    run, signers = opened()
    peers = run.roster.members
    run.receive(peers[1].peer, seal(signers[1], model(run, 0)), 0.1)
    run.gathered(1, 0, True, 0.2)
    run.stepped(0, (b"o" * 32,), (0,), 0.3)
    assert run.phase is Phase.GATHER
    run.receive(peers[3].peer, seal(signers[3], Here(run.roster.run, 0)), 5.9)
    effects = run.tick(6.1)
    (mix,) = [effect for effect in effects if isinstance(effect, Mix)]
    assert [row.place for row in mix.rows] == [1]
    assert mix.trusted is None
    after = run.mixed(0, (0.5,), (1.0,), 6.2)
    assert [effect for effect in after if isinstance(effect, Step)] == [Step(1, train=True)]
    assert run.report.rounds[0].absent == (peers[2].peer, peers[3].peer)


def test_an_only_neighbour_that_claims_to_be_done_has_us_skip_one_round_at_most() -> None:
    run, signers = opened(4, Topology.STAR)
    leaf = Neighbours(run.roster, signers[1], topology=Topology.STAR)
    leaf.start(0.0)
    hub = run.roster.members[0].peer
    leaf.receive(hub, seal(signers[0], model(run, leaf.rounds)), 0.1)
    leaf.stepped(0, (b"o" * 32,), (0,), 0.2)
    leaf.gathered(0, leaf.rounds, True, 0.3)
    leaf.mixed(0, (0.1,), (1.0,), 0.4)
    assert leaf.round == 2


def test_who_is_done_says_so_and_is_settled_once_all_are() -> None:
    run, signers = opened(2, Topology.MESH)
    peer = run.roster.members[1].peer
    done: list[object] = []
    for number in range(run.rounds):
        now = 1.0 + number
        run.receive(peer, seal(signers[1], model(run, number)), now)
        run.gathered(1, number, True, now)
        run.stepped(number, (b"o" * 32,), (0,), now)
        done += [one for one in run.mixed(number, (0.25,), (1.0,), now) if isinstance(one, Done | Send)]
    assert Done(((1, 0.25),), 0.25) in done
    assert run.finished
    assert not run.settled
    run.receive(peer, seal(signers[1], Here(run.roster.run, run.rounds)), 7.0)
    assert run.settled
    assert [one.round for one in run.report.rounds] == [0, 1]


def test_a_stranger_has_no_run() -> None:
    with pytest.raises(LocalError):
        Neighbours(roster_of(4, 2), identity(77), topology=Topology.MESH)
