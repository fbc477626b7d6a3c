"""Inputs that follow from another one are computed by the model; a model has one input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import celluler
from celluler.engines.graph.translate import NotExportable
from celluler.engines.load import load_model
from celluler.models.folder import WEIGHTS

WORDS = 11


class Reader(nn.Module):
    """Sums what its tokens, their kinds and places are embedded to, as far as the mask lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(WORDS, 6), nn.Embedding(2, 6), nn.Embedding(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> Tensor:
        x = self.words(input_ids) + self.kinds(token_type_ids) + self.places(position_ids)
        out: Tensor = self.head((x * attention_mask[..., None].float()).sum(dim=1))
        return out


TOKENS = torch.randint(0, WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
BESIDE = {
    "attention_mask": torch.ones_like(TOKENS),
    "token_type_ids": torch.zeros_like(TOKENS),
    "position_ids": torch.arange(7).expand(3, -1),
}
DYNAMIC = {"batch": (1, 4), "sequence": (2, 16)}


@pytest.mark.parametrize("named", [True, False])
def test_what_follows_from_the_tokens_is_filled_in_and_that_is_said(named: bool, tmp_path: Path) -> None:
    module = Reader()
    given: Any = {"input_ids": TOKENS} | BESIDE if named else (TOKENS, *BESIDE.values())
    with pytest.warns(UserWarning, match="is filled in") as told:
        body = celluler.publish(module, given, tmp_path, dynamic=DYNAMIC)
    assert [str(one.message).split(":")[0] for one in told] == [f"{name} is filled in" for name in BESIDE]
    assert body.vocabulary == WORDS
    assert {tensor.name for tensor in body.tensors} == set(module.state_dict())
    predictor = load_model(body, tmp_path / WEIGHTS).predictor()
    for shape in ((1, 2), (4, 16)):
        x = np.random.default_rng(2).integers(0, WORDS, shape)
        tokens = torch.from_numpy(x)
        ones, zeros = torch.ones_like(tokens), torch.zeros_like(tokens)
        expected = module.eval()(tokens, ones, zeros, torch.arange(shape[1]).expand(shape[0], -1)).detach().numpy()
        assert np.allclose(predictor.predict(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"input_ids": TOKENS, "attention_mask": BESIDE["attention_mask"].clone().fill_(0)},
            "is not what it is filled",
        ),
        ({"input_ids": TOKENS, "pictures": torch.zeros(3, 7)}, "there is pictures beside input_ids"),
        ({"attention_mask": TOKENS, "input_ids": TOKENS}, "the first is attention_mask"),
        ({"input_ids": torch.zeros(3, 7, 2), "attention_mask": torch.ones(3, 7)}, "a model of ours takes one input"),
        ({}, "there is no example"),
        ((TOKENS, *BESIDE.values(), TOKENS), "there is input 4 beside"),
    ],
)
def test_a_second_input_that_does_not_follow_is_refused(given: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match=problem):
        celluler.publish(Reader(), given, tmp_path, dynamic=DYNAMIC)
    assert not list(tmp_path.iterdir())


def test_one_input_is_taken_by_its_name_too_and_nothing_is_said(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        body = celluler.publish(module, {"input": torch.randn(2, 3)}, tmp_path)
    x = np.ones((2, 3), np.float32)
    expected = module(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(load_model(body, tmp_path / WEIGHTS).predictor().predict(x), expected, atol=1e-6)
