"""What a job's choice of consensus and topology promises."""

from __future__ import annotations

import typing

import pytest

from celluler.errors import InvalidSpec
from celluler.jobs.guarantees import guarantees
from celluler.jobs.spec import GOSSIP_ONLY, Train

CHOICES = [typing.get_args(Train.model_fields[name].annotation) for name in ("consensus", "topology")]


@pytest.mark.parametrize("consensus", CHOICES[0])
@pytest.mark.parametrize("topology", CHOICES[1])
def test_whatever_a_spec_allows_has_sentences_and_nothing_else_does(consensus: str, topology: str) -> None:
    if topology in GOSSIP_ONLY and consensus != "gossip":
        with pytest.raises(InvalidSpec, match="does not go with"):
            guarantees(consensus, topology)
        return
    told = guarantees(consensus, topology)
    assert told.given
    assert told.not_given
    assert all(sentence.endswith(".") and len(sentence) < 300 for sentence in (*told.given, *told.not_given))


def test_a_consensus_that_nobody_knows_is_refused_by_its_place() -> None:
    with pytest.raises(InvalidSpec, match=r"train\.consensus"):
        guarantees("raft", "mesh")
