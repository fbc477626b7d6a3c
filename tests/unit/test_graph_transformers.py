"""Models of the `transformers` library as graphs, where it is installed: tiny ones, of their own classes.

`pip install transformers`, then `pytest -m large tests/unit/test_graph_transformers.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import celluler
from celluler.engines.load import load_model
from celluler.models.folder import WEIGHTS

pytestmark = pytest.mark.large

WORDS = 64
SMALL = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 1,
         "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2, "use_cache": False}
PICTURE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 32, "num_labels": 5}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": DECODER,
    "MistralForCausalLM": DECODER,
    "Qwen2ForCausalLM": DECODER,
    "Qwen3ForCausalLM": DECODER | {"head_dim": 4},
    "GemmaForCausalLM": DECODER | {"head_dim": 4},
    "PhiForCausalLM": DECODER,
    "Phi3ForCausalLM": DECODER,
    "OlmoForCausalLM": DECODER,
    "GPTNeoXForCausalLM": DECODER,
    "GPT2LMHeadModel": {"vocab_size": WORDS, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2,
                        "use_cache": False, "bos_token_id": 1, "eos_token_id": 2},
    "OPTForCausalLM": SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16, "use_cache": False},
    "BertModel": SMALL,
    "BertForSequenceClassification": SMALL | {"num_labels": 3},
    "RobertaModel": SMALL,
    "DistilBertModel": {"vocab_size": WORDS, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "AlbertModel": SMALL | {"embedding_size": 8},
    "ElectraModel": SMALL | {"embedding_size": 8},
    "ModernBertModel": SMALL,
    "T5EncoderModel": {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": PICTURE,
    "DeiTForImageClassification": PICTURE,
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "ConvNextForImageClassification": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2},
    "MobileNetV2ForImageClassification": {"image_size": 16, "depth_multiplier": 0.25},
    "SwinForImageClassification": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
}


def model_of(name: str, fields: dict[str, Any]) -> nn.Module:
    """Of a class named in the table above."""
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    made: nn.Module = cls(cls.config_class(**fields))
    return made


def first(outputs: Any) -> Tensor:
    told: Tensor = outputs[0]
    return told


@pytest.mark.parametrize("name", TEXTS)
def test_a_model_of_texts_is_published_with_lengths_that_vary(tmp_path: Path, name: str) -> None:
    original = model_of(name, TEXTS[name])
    body = celluler.publish(
        original, torch.randint(0, WORDS, (2, 8)), tmp_path, dynamic={"batch": (1, 8), "sequence": (2, 16)}
    )
    predictor = load_model(body, tmp_path / WEIGHTS).predictor()
    for shape in ((1, 2), (3, 16), (8, 5)):
        x = np.random.default_rng(1).integers(3, WORDS, shape)
        with torch.no_grad():
            expected = first(original.eval()(torch.from_numpy(x))).numpy()
        assert np.array_equal(predictor.predict(x), expected), shape


def test_what_stands_beside_the_tokens_of_a_text_is_filled_in(tmp_path: Path) -> None:
    original = model_of("BertModel", TEXTS["BertModel"])
    x = torch.randint(0, WORDS, (2, 8))
    named = {"input_ids": x, "attention_mask": torch.ones_like(x), "token_type_ids": torch.zeros_like(x)}
    with pytest.warns(UserWarning, match="attention_mask is filled in: every token counts"):
        body = celluler.publish(original, named, tmp_path, dynamic={"batch": (1, 8), "sequence": (2, 16)})
    predictor = load_model(body, tmp_path / WEIGHTS).predictor()
    for shape in ((1, 3), (3, 16)):
        tokens = np.random.default_rng(1).integers(3, WORDS, shape)
        told = torch.from_numpy(tokens)
        with torch.no_grad():
            expected = first(original.eval()(told, torch.ones_like(told), torch.zeros_like(told))).numpy()
        assert np.allclose(predictor.predict(tokens), expected, atol=1e-6), shape


@pytest.mark.parametrize("name", PICTURES)
def test_a_model_of_pictures_is_published(tmp_path: Path, name: str) -> None:
    original = model_of(name, PICTURES[name])
    body = celluler.publish(original, torch.randn(2, 3, 16, 16), tmp_path, objective="classification")
    predictor = load_model(body, tmp_path / WEIGHTS).predictor()
    for count in (1, 5):
        x = np.random.default_rng(1).normal(size=(count, 3, 16, 16)).astype(np.float32)
        with torch.no_grad():
            expected = first(original.eval()(torch.from_numpy(x))).numpy()
        assert np.array_equal(predictor.predict(x), expected), count
