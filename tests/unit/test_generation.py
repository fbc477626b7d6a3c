"""Generating in slots: what comes out is what the whole model would say, whoever else is in the batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from celluler.engines.generation.cached import CachedDecoder
from celluler.engines.generation.decoder import Decoder, open_decoder
from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.modules import module_of
from celluler.errors import InvalidSpec, LocalError
from celluler.inference.caching import Cached, Recomputed, caching_of
from celluler.inference.sampling import GREEDY, Sampling
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.narrow import NARROW
from celluler.models.narrow_weights import narrow_weights
from celluler.models.spec import Architecture, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_vector

pytestmark = pytest.mark.thorough

TIME, WORDS = 24, 19
TOLERANCE = 5e-5
"""Of the largest logit, between one place after the other and all at once."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def language(*layers: dict[str, Any], time: int = TIME) -> Architecture:
    first = {"kind": "embedding", "vocabulary": WORDS, "width": 16}
    last = {"kind": "dense", "width": WORDS}
    return parse_spec(
        {
            "spec": 1,
            "input": {"dtype": "int64", "shape": [time]},
            "layers": [first, *layers, last],
            "objective": {"kind": "next_token", "vocabulary": WORDS},
        }
    )


def added(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "residual", "layers": list(layers)}


ATTENTION = {"kind": "attention", "heads": 4, "causal": True}
LLAMA = {
    "kind": "repeat",
    "times": 2,
    "layers": [
        added({"kind": "rms_norm"}, ATTENTION | {"kv_heads": 2, "rope_base": 10000.0}),
        added({"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 24}),
    ],
}
GPT = (
    {"kind": "positions"},
    added({"kind": "layer_norm"}, ATTENTION | {"bias": True}),
    added({"kind": "layer_norm"}, {"kind": "feed_forward", "hidden": 24}, {"kind": "dropout", "rate": 0.5}),
    added(
        {"kind": "layer_norm"},
        {"kind": "dense", "width": 8},
        {"kind": "repeat", "times": 2, "layers": [ATTENTION]},
        {"kind": "dense", "width": 16},
    ),
)
BODIES = {
    "llama": language(LLAMA, {"kind": "rms_norm"}),
    "gpt": language(*GPT, {"kind": "layer_norm"}),
    "lstm": language({"kind": "lstm", "hidden": 12}),
    "mixed over time": language({"kind": "flatten"}, {"kind": "reshape", "shape": [TIME, 16]}),
}


def module(body: Architecture) -> nn.Module:
    vector = initial_vector(body, b"s" * 32)
    drawn = np.random.default_rng(0).normal(0.0, 0.1, len(vector)).astype(np.float32)
    return module_of(body, torch.from_numpy(vector + drawn)).eval()


MODULES = {name: module(body) for name, body in BODIES.items()}


def whole(name: str, tokens: list[int]) -> torch.Tensor:
    """Logits behind the last of the tokens, by one pass over a sample as the spec has it."""
    x = torch.zeros((1, TIME), dtype=torch.int64)
    x[0, : len(tokens)] = torch.tensor(tokens)
    with torch.inference_mode():
        told: torch.Tensor = MODULES[name](x)[0, len(tokens) - 1]
    return told


def assert_near(told: torch.Tensor, wanted: torch.Tensor) -> None:
    assert told.shape == wanted.shape
    assert float((told - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


def greedy(name: str, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(whole(name, tokens).argmax()))
    return tokens[len(prompt) :]


def decoder(name: str, slots: int) -> Decoder:
    return open_decoder(BODIES[name], MODULES[name], caching_of(BODIES[name]), slots, TIME)


def test_bodies_of_causal_attention_keep_a_cache_and_others_say_why_not() -> None:
    kept = caching_of(BODIES["gpt"])
    assert isinstance(kept, Cached)
    assert [(one.groups, one.width) for one in kept.attentions] == [(4, 4), (4, 2), (4, 2)]
    assert isinstance(decoder("gpt", 1), CachedDecoder)
    for name, why in (("lstm", "lstm"), ("mixed over time", "flatten")):
        told = caching_of(BODIES[name])
        assert isinstance(told, Recomputed)
        assert why in told.why
    with pytest.raises(InvalidSpec, match="next_token generates"):
        caching_of(parse_spec(fill("mlp")))


@pytest.mark.parametrize("name", list(BODIES))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_sequences_of_any_lengths_come_and_go_and_logits_are_those_of_the_whole_model(name: str, data: Any) -> None:
    slots = 3
    ours = decoder(name, slots)
    held: list[list[int]] = [[] for _ in range(slots)]
    words = st.integers(0, WORDS - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(("prefill", "decode", "copy"))):
            case "prefill":
                slot = data.draw(st.integers(0, slots - 1))
                if room := TIME - len(held[slot]):
                    tokens = data.draw(st.lists(words, min_size=1, max_size=min(room, 7)))
                    held[slot] += tokens
                    told = ours.prefill(slot, tokens, last=True)
                    assert told is not None
                    assert_near(told, whole(name, held[slot]))
            case "decode":
                able = [slot for slot in range(slots) if 0 < len(held[slot]) < TIME]
                if some := sorted(data.draw(st.sets(st.sampled_from(able)))) if able else []:
                    tokens = [data.draw(words) for _ in some]
                    for slot, token in zip(some, tokens, strict=True):
                        held[slot].append(token)
                    wanted = torch.stack([whole(name, held[slot]) for slot in some])
                    assert_near(ours.decode(some, tokens), wanted)
            case "copy":
                source, target = data.draw(st.integers(0, slots - 1)), data.draw(st.integers(0, slots - 1))
                count = data.draw(st.integers(0, len(held[source])))
                ours.copy(source, target, count)
                held[target] = held[source][:count]


@pytest.mark.parametrize("name", list(BODIES))
def test_greedy_tokens_of_sequences_that_overlap_are_those_of_each_alone(name: str) -> None:
    prompts = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 3, 8, 1], [5, 4, 3, 2, 1]]
    slots = GeneratingSlots(BODIES[name], MODULES[name], slots=2)
    told: dict[int, list[int]] = {one: [] for one in range(len(prompts))}
    waiting, running = list(range(len(prompts))), dict[int, int]()
    filling: list[int] = []
    while waiting or running:
        while waiting and (free := [slot for slot in range(2) if slot not in running]):
            running[free[0]] = one = waiting.pop(0)
            slots.admit(free[0], prompts[one], GREEDY)
            filling.append(free[0])
        decode = [slot for slot in sorted(running) if slot not in filling]
        stepped = slots.step(filling[0] if filling else None, 3, decode)
        if filling and not stepped.left:
            filling.pop(0)
        for drawn in stepped.drawn:
            assert drawn.chosen is not None
            told[running[drawn.slot]].append(drawn.chosen.token)
            if len(told[running[drawn.slot]]) == 6:
                slots.release(drawn.slot)
                del running[drawn.slot]
    assert told == {one: greedy(name, prompt, 6) for one, prompt in enumerate(prompts)}


def generate(slots: GeneratingSlots, slot: int, count: int, beside: tuple[int, ...] = ()) -> list[int]:
    tokens: list[int] = []
    stepped = slots.step(slot, TIME, ())
    while True:
        tokens += [one.chosen.token for one in stepped.drawn if one.slot == slot and one.chosen]
        if len(tokens) == count:
            return tokens
        stepped = slots.step(None, 1, sorted((slot, *beside)))


def test_a_seed_draws_the_same_tokens_whatever_is_beside_it_and_another_draws_others() -> None:
    def drawn(seed: int, slot: int, beside: tuple[int, ...]) -> list[int]:
        slots = GeneratingSlots(BODIES["llama"], MODULES["llama"], slots=4)
        for place in beside:
            slots.admit(place, [place + 1], Sampling(seed=place))
            slots.step(place, 1, ())
        slots.admit(slot, [4, 2], Sampling(temperature=1.5, seed=seed))
        return generate(slots, slot, 12, beside)

    assert drawn(7, 0, ()) == drawn(7, 2, (0, 3)) == drawn(7, 1, (0, 2, 3))
    assert len({tuple(drawn(seed, 0, ())) for seed in range(5)}) == 5


@pytest.mark.parametrize("name", ["llama", "lstm"])
def test_a_beginning_that_another_slot_holds_is_shared_and_only_if_it_is_the_same(name: str) -> None:
    slots = GeneratingSlots(BODIES[name], MODULES[name], slots=2)
    prompt = [5, 6, 7, 8, 9]
    slots.admit(0, prompt, GREEDY)
    first = generate(slots, 0, 4)
    with pytest.raises(LocalError, match="does not hold"):
        slots.admit(1, [5, 6, 1, 2], GREEDY, source=0, shared=3)
    with pytest.raises(LocalError, match="does not hold"):
        slots.admit(1, prompt, GREEDY, source=0, shared=5)
    slots.admit(1, prompt, GREEDY, source=0, shared=4)
    assert generate(slots, 1, 4) == first == greedy(name, prompt, 4)
    slots.release(0)
    slots.admit(0, [*prompt, *first[:2], 1], GREEDY, source=0, shared=7)
    assert generate(slots, 0, 3) == greedy(name, [*prompt, *first[:2], 1], 3)


def test_what_does_not_fit_is_refused_and_nothing_has_changed() -> None:
    slots = GeneratingSlots(BODIES["llama"], MODULES["llama"], slots=2)
    for slot, prompt in ((2, [1]), (-1, [1]), (0, []), (0, [1] * (TIME + 1)), (0, [WORDS]), (0, [-1])):
        with pytest.raises(LocalError):
            slots.admit(slot, prompt, GREEDY)
    slots.admit(0, [1] * TIME, GREEDY)
    for prefill, count, decode in ((1, 1, ()), (0, 0, ()), (None, 1, (0,)), (None, 1, (1,)), (None, 1, (0, 0))):
        with pytest.raises(LocalError):
            slots.step(prefill, count, decode)
    with pytest.raises(LocalError, match="in use"):
        slots.admit(0, [1], GREEDY)
    assert slots.step(0, TIME, ()).drawn[0].chosen is not None
    with pytest.raises(LocalError, match="no place"):
        slots.step(None, 1, (0,))
    with pytest.raises(LocalError, match="slots of"):
        GeneratingSlots(BODIES["llama"], MODULES["llama"], slots=1, length=TIME + 1)
    with pytest.raises(DoesNotFit, match="cache of 64 slots"):
        GeneratingSlots(BODIES["llama"], MODULES["llama"], slots=64, memory_bytes=RUNTIME_BYTES + (1 << 17))


def test_a_model_without_a_finite_logit_is_told_of_that_slot_alone() -> None:
    broken = copy.deepcopy(MODULES["llama"])
    with torch.no_grad():
        broken[0].weight[3] = float("nan")  # type: ignore[index]
    slots = GeneratingSlots(BODIES["llama"], broken, slots=2)
    slots.admit(0, [3], GREEDY)
    slots.admit(1, [4], GREEDY)
    assert slots.step(0, 1, ()).drawn[0].chosen is None
    assert slots.step(1, 1, ()).drawn[0].chosen is not None
    with pytest.raises(LocalError):
        slots.step(None, 1, (0, 1))
    assert slots.step(None, 1, (1,)).drawn[0].chosen is not None


@pytest.mark.parametrize("dtype", NARROW)
def test_weights_in_less_than_float32_are_decoded_as_they_are_stored(dtype: str) -> None:
    whole_body = language({"kind": "dense", "width": 64}, *GPT[:2], {"kind": "layer_norm"})
    narrow, vector, still = narrow_weights(whole_body, initial_vector(whole_body, b"s" * 32), dtype)
    its = module_of(narrow, torch.from_numpy(vector), still).eval()
    kept = caching_of(narrow)
    assert isinstance(kept, Cached)
    ours = open_decoder(narrow, its, kept, 2, TIME)
    tokens = [4, 1, 7, 7, 2]
    ours.prefill(0, [9, 9], last=False)
    ours.prefill(1, tokens[:3], last=False)
    ours.decode((0, 1), (1, tokens[3]))
    told = ours.decode((0, 1), (1, tokens[4]))[1]
    with torch.inference_mode():
        wanted = its(torch.tensor([tokens + [0] * (TIME - len(tokens))]))[0, len(tokens) - 1]
    assert float((told - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())
