"""Seeded schedules of the rounds: the real machines, a network that misbehaves, members that lie, die, come and go.

After every schedule with at most b liars and dead it is checked that

- no two different bodies were certified at one height, and all honest members applied the same ones;
- no honest member was excluded or blamed by an honest one, and none was expelled; none suspended in a calm network;
- once the network has healed, every honest member alive finishes, with the same state, those who came late too;

and, where members check each other's reducing:

- where everybody checks everything, no body with a wrong part was certified; where each checks two parts, none was that
  an honest member had found wrong, as long as the network was prompt;
- an honest leader expels everybody whom all honest members have had proof against for a while.

A schedule is its seed: `python -m simulations.rounds --seed 17` replays one, `--schedules 10000` runs many.
Training, the exchange and the computing anew are models here (digests of digests); their bytes are not what is tested.
"""

from simulations.rounds.cast import GENESIS, digest, identity, roster_of, signers_of
from simulations.rounds.liars import (
    AccusesFalsely,
    HidesInputs,
    Honest,
    KeepsInputs,
    KeepsParts,
    Poisons,
    ReducesWrongly,
    ServesHalf,
    Silent,
    Traitor,
    TwoVotes,
)
from simulations.rounds.member import Member
from simulations.rounds.schedule import Joiner, Schedule, draw
from simulations.rounds.theatre import Theatre, play

__all__ = [
    "GENESIS",
    "AccusesFalsely",
    "HidesInputs",
    "Honest",
    "Joiner",
    "KeepsInputs",
    "KeepsParts",
    "Member",
    "Poisons",
    "ReducesWrongly",
    "Schedule",
    "ServesHalf",
    "Silent",
    "Theatre",
    "Traitor",
    "TwoVotes",
    "digest",
    "draw",
    "identity",
    "play",
    "roster_of",
    "signers_of",
]
