"""What a job's members can rely on, and what not, in sentences: by its consensus and its topology.

For whoever is about to submit a job. The reasons stand in docs/explanation/consensus.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from celluler.errors import InvalidSpec

CERTIFIED = ("proof-of-learning", "byzantine")
GOSSIP = "gossip"


@dataclass(frozen=True, slots=True)
class Guarantees:
    """given, not_given: sentences, the most important first."""

    given: tuple[str, ...]
    not_given: tuple[str, ...]


_CERTIFIED = Guarantees(
    (
        "All members end with the same model, bit for bit: every round is certified by a quorum, or is no round.",
        "With n members, up to ⌊(n−1)/3⌋ may do anything at all: lie, collude, vanish.",
        "The rule bears bad updates from fewer than half of a round's members on IID data, from a fifth on data of "
        "their own; the rule `mean` bears none.",
        "A stranger can verify the result from the members' transcripts.",
    ),
    (
        "Without a quorum of members that hear each other the run stands still, and ends with that reason.",
        "With fewer than four members nobody's death or lie is borne.",
    ),
)

_CONSENSUS: Mapping[str, Guarantees] = MappingProxyType(
    {
        "proof-of-learning": Guarantees(
            (
                *_CERTIFIED.given,
                "Training is audited: others do the steps of privately drawn members again, and who did not train is "
                "expelled by a quorum that found it so.",
            ),
            (
                *_CERTIFIED.not_given,
                "Audits are samples, and need a quorum of the others that computes like the audited machine: a few "
                "lazy rounds may pass.",
            ),
        ),
        "byzantine": Guarantees(
            _CERTIFIED.given,
            (*_CERTIFIED.not_given, "Nobody looks whether a member trained: the rule alone judges what it sends."),
        ),
        GOSSIP: Guarantees(
            (
                "Nothing stops it: no quorum is needed, a dead, slow or cut-off neighbour costs the wait for it and "
                "no more.",
                "Where most of a member's neighbours are honest, a liar among them pulls its model no farther in a "
                "round than an honest neighbour of ordinary distance; with the rule `mean` as far as it likes.",
                "A result is taken only by members from whose own model it lies no farther than half of the way "
                "learned.",
            ),
            (
                "Members' models differ; the published one is its publisher's own, and so is its name.",
                "There are no certificates: nothing is proved to members or to strangers, `celluler verify` has "
                "nothing to read, nobody is expelled.",
                "A neighbour may tell two members different things, and nobody notices.",
                "A neighbour that echoes a member's own model, or keeps back its own, slows what that member learns "
                "from others, down to nothing where it is half of them.",
                "Across a cut two models grow, and two results may be published.",
            ),
        ),
    }
)

_TOPOLOGY: Mapping[tuple[bool, str], Guarantees] = MappingProxyType(
    {
        (True, "mesh"): Guarantees(("Every member reduces a part: the work is spread, no member is needed.",), ()),
        (True, "star"): Guarantees(
            ("One member reduces all parts; when it fails, the next view has another.",),
            ("The reducer moves the whole group's updates: its link sets the pace.",),
        ),
        (False, "mesh"): Guarantees(
            ("Everybody hears everybody: models agree soonest, and most liars are borne.",),
            ("Every member fetches every other's model in every round.",),
        ),
        (False, "ring"): Guarantees(
            ("A member fetches two models in a round, however many members there are; over who died it closes.",),
            ("One of two neighbours may lie. Two liars that are not neighbours part the ring.", "Agreement is slow: "
             "n² rounds, in order of size."),
        ),
        (False, "star"): Guarantees(
            ("A member fetches one model in a round; when the hub falls silent, the next member is the hub.",),
            (
                "A hub that lies meets no rule: each round it may undo 1/n of what its neighbour's own steps gave.",
                "The hub fetches every model in every round, and agreement is slow: n rounds, in order of size.",
            ),
        ),
        (False, "hierarchical"): Guarantees(
            ("A member fetches one model in a round, an aggregator those of its region and of the other aggregators; "
             "when it falls silent, the next member of its region takes its place.",),
            ("A lying aggregator meets no rule in its region: its members learn little from elsewhere.",),
        ),
    }
)  # fmt: skip


def guarantees(consensus: str, topology: str) -> Guarantees:
    """Raises InvalidSpec for what does not go together."""
    general = _CONSENSUS.get(consensus)
    if general is None:
        raise InvalidSpec("train.consensus", f"no consensus is called {consensus!r}; there are {', '.join(_CONSENSUS)}")
    special = _TOPOLOGY.get((consensus in CERTIFIED, topology))
    if special is None:
        raise InvalidSpec("train.topology", f"{topology} does not go with the consensus {consensus}")
    return Guarantees((*general.given, *special.given), (*general.not_given, *special.not_given))
