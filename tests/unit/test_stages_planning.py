"""Cutting a body into blocks, and giving them to peers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import InvalidSpec, NoPeers
from celluler.inference.caching import Cached, caching_of
from celluler.inference.memory import WORKER_BYTES
from celluler.inference.stages import blocks_of, stage_of
from celluler.inference.stages_planning import Candidate, Load, Part, loads_of, plan_stages, slowest_s
from celluler.models.spec import Architecture, parse_spec
from celluler.models.templates import fill


def llama(times: int = 3) -> Architecture:
    return parse_spec(fill("transformer-lm", [f"layers[1].times={times}"]))


def test_a_llama_is_cut_at_its_repeats_and_every_tensor_is_of_one_block() -> None:
    body = llama()
    blocks = blocks_of(body)
    assert [block.path for block in blocks] == ["0", "1.0", "1.1", "1.2", "2", "3"]
    assert [name for block in blocks for name in (one.name for one in block.tensors)] == [
        tensor.name for tensor in body.planned
    ]
    assert {one.name.split(".", 2)[:2] == ["1", "1"] for one in blocks[2].tensors} == {True}
    assert sum(block.multiply_adds for block in blocks) == body.cost.multiply_adds


def test_stages_share_out_weights_and_cache_and_nothing_is_lost_or_held_twice() -> None:
    body = llama()
    stages = [stage_of(body, 0, 2), stage_of(body, 2, 4), stage_of(body, 4, 6)]
    assert [(one.is_first, one.is_last, one.given, one.gives) for one in stages] == [
        (True, False, 0, 64),
        (False, False, 64, 64),
        (False, True, 64, 128),
    ]
    assert sum(one.weight_bytes for one in stages) == body.parameter_bytes
    assert frozenset().union(*(one.names for one in stages)) == {one.name for one in body.stored}
    whole = caching_of(body)
    assert isinstance(whole, Cached)
    assert sum(one.cached.byte_count(2, 8) for one in stages) == whole.byte_count(2, 8)


def test_narrow_weights_keep_their_scales_with_them() -> None:
    body = llama().stored_as("int8")
    halves = [stage_of(body, 0, 3), stage_of(body, 3, 6)]
    assert halves[0].names | halves[1].names == {one.name for one in body.stored}
    assert not halves[0].names & halves[1].names
    assert sum(one.weight_bytes for one in halves) == body.parameter_bytes


@pytest.mark.parametrize("template", ["lstm-lm", "mlp"])
def test_what_has_no_cached_attention_is_not_cut(template: str) -> None:
    with pytest.raises(InvalidSpec):
        blocks_of(parse_spec(fill(template)))
    with pytest.raises(InvalidSpec, match="no blocks"):
        stage_of(llama(), 2, 9)


def test_the_fastest_peer_gets_most_and_the_near_one_is_preferred() -> None:
    loads = [Load(100, 100)] * 12
    memory = WORKER_BYTES + 1200
    swift, slow = Candidate("swift", memory, 200.0), Candidate("slow", memory, 100.0)
    assert plan_stages(loads, [slow, swift], stages=2) in (
        (Part("swift", 0, 8), Part("slow", 8, 12)),
        (Part("slow", 0, 4), Part("swift", 4, 12)),
    )
    far = replace(slow, peer="far", round_trip_s=0.05)
    chosen = plan_stages(loads, [far, slow, swift], stages=2)
    assert {part.peer for part in chosen} == {"slow", "swift"}


def test_as_few_stages_as_have_the_memory() -> None:
    loads = [Load(100, 100)] * 10
    peers = [Candidate(f"p{one}", WORKER_BYTES + 400, 100.0) for one in range(4)]
    assert len(plan_stages(loads, peers)) == 3
    assert len(plan_stages(loads, [*peers, Candidate("large", WORKER_BYTES + 1000, 1.0)])) == 1
    with pytest.raises(NoPeers, match="not the memory together"):
        plan_stages(loads, peers[:2])
    with pytest.raises(NoPeers, match="too little memory"):
        plan_stages(loads, [replace(peers[0], memory_bytes=WORKER_BYTES)], stages=1)
    with pytest.raises(InvalidSpec):
        plan_stages(loads, peers, stages=11)


@settings(max_examples=60, deadline=None)
@given(
    loads=st.lists(st.builds(Load, st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6),
    peers=st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from((1.0, 2.0, 3.5)), st.sampled_from((0.0, 0.5, 4.0))),
        min_size=1,
        max_size=4,
    ),
    stages=st.integers(1, 4),
)
def test_no_other_plan_has_a_faster_slowest_stage(
    loads: list[Load], peers: list[tuple[int, float, float]], stages: int
) -> None:
    able = [Candidate(f"p{place}", WORKER_BYTES + room, *rest) for place, (room, *rest) in enumerate(peers)]
    stages = min(stages, len(loads))
    every = list(_every_plan(loads, able, stages))
    try:
        found = plan_stages(loads, able, stages=stages)
    except NoPeers:
        assert not every
        return
    assert [part.first for part in found] == [0, *(part.until for part in found[:-1])]
    assert found[-1].until == len(loads)
    assert all(part.first < part.until for part in found)
    assert found in every
    told = slowest_s(loads, able, found)
    assert told == min(slowest_s(loads, able, one) for one in every)
    trips = {one.peer: one.round_trip_s for one in able}
    equals = [one for one in every if slowest_s(loads, able, one) == told]
    assert sum(trips[part.peer] for part in found) == min(sum(trips[part.peer] for part in one) for one in equals)


def _every_plan(loads: list[Load], able: list[Candidate], stages: int) -> itertools.chain[tuple[Part, ...]]:
    def plans() -> list[tuple[Part, ...]]:
        made = []
        for cuts in itertools.combinations(range(1, len(loads)), stages - 1):
            ends = (0, *cuts, len(loads))
            for peers in itertools.permutations(able, stages):
                parts = tuple(
                    Part(one.peer, first, until) for one, first, until in zip(peers, ends[:-1], ends[1:], strict=True)
                )
                held = [sum(load.held_bytes for load in loads[part.first : part.until]) for part in parts]
                if all(need <= one.memory_bytes - WORKER_BYTES for need, one in zip(held, peers, strict=True)):
                    made.append(parts)
        return made

    return itertools.chain(plans())


def test_what_a_block_costs_is_its_weights_and_its_cache() -> None:
    body = llama()
    blocks = blocks_of(body)
    loads = loads_of(body, blocks, slots=2, length=16)
    assert sum(load.weight_bytes for load in loads) == body.parameter_bytes
    assert [load.held_bytes - load.weight_bytes for load in loads] == [0, *[2 * 16 * 8 * 32] * 3, 0, 0]
