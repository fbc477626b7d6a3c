"""Language models from Hugging Face folders and GGUF: as a spec they say what the original says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from celluler.engines.load import load_model
from celluler.errors import InvalidSpec
from celluler.formats.decoder_configs import config_of, decoder_of_config, decoder_of_gguf
from celluler.formats.decoder_tensors import export_hf
from celluler.formats.decoders import decoder_of_spec, document_of
from celluler.formats.hf_folders import open_hf
from celluler.formats.imported import Imported
from celluler.formats.importing import Wishes, import_gguf, import_hf_folder
from celluler.formats.safetensors_files import open_safetensors, write_safetensors
from celluler.models.body import parse_body
from celluler.models.layers.rotary import Linear, Llama3, Yarn
from celluler.models.memory import DoesNotFit, check_room
from celluler.models.spec import parse_spec
from tests.support.decoders import GPT2, LLAMA, gpt2, gpt2_state, hf_folder, llama, llama_state, tokens
from tests.support.model_files import a_gguf

pytestmark = pytest.mark.thorough

TOLERANCE = 1e-5
"""Of logits of size 1: two orders of float32 sums."""


def answers(imported: Imported, folder: Path, given: Tensor) -> np.ndarray[Any, Any]:
    document, weights = imported.write(folder)
    model = load_model(parse_body(imported.kind, document.read_bytes()), weights)
    return model.predictor().predict(given.numpy())


def length(imported: Imported) -> int:
    return parse_spec(imported.document).input.shape[0]


def test_a_decoder_has_the_places_that_answering_has_room_for_and_training_is_counted_whole() -> None:
    small = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
    small |= {"num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192}
    body = parse_spec(document_of(decoder_of_config(LLAMA | small)))
    assert body.input.shape == (2048,)
    assert body.working_bytes < 400 << 20 < 2 << 30 < body.activation_bytes
    check_room(body, 4 << 30, training=False)
    with pytest.raises(DoesNotFit, match="training this model takes 14543 MiB"):
        check_room(body, 8 << 30, training=True)


@pytest.mark.parametrize(
    ("change", "biases"),
    [
        ({}, ()),
        ({"num_key_value_heads": 4, "tie_word_embeddings": True}, ()),
        ({"model_type": "qwen2"}, ("q_proj", "k_proj", "v_proj")),
        ({"attention_bias": True}, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ({"model_type": "mistral", "sliding_window": 8}, ()),
        ({"rope_theta": 5000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, ()),
    ],
    ids=("grouped", "tied", "qwen2", "biased", "mistral", "transformers 5"),
)
def test_a_llama_folder_says_the_same_as_a_spec(
    change: dict[str, Any], biases: tuple[str, ...], tmp_path: Path
) -> None:
    config = LLAMA | change
    state = llama_state(config, biases=biases)
    imported = import_hf_folder(hf_folder(tmp_path, config, state, shards=2), Wishes())
    given = tokens(config, length(imported))
    assert np.abs(answers(imported, tmp_path, given) - llama(config, state, given).numpy()).max() < TOLERANCE


STRETCHED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 12,
        "low_freq_factor": 0.25, "high_freq_factor": 1.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2},
    "yarn, as it is told": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 1.5,
        "beta_slow": 0.05, "truncate": False, "attention_factor": 1.25,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STRETCHED)
def test_stretched_positions_turn_as_the_config_says(name: str, tmp_path: Path) -> None:
    config = LLAMA | {"rope_scaling": STRETCHED[name]}
    state = llama_state(config)
    imported = import_hf_folder(hf_folder(tmp_path, config, state), Wishes())
    given = tokens(config, length(imported))
    told = llama(config, state, given).numpy()
    assert np.abs(answers(imported, tmp_path, given) - told).max() < TOLERANCE
    if name != "dynamic":
        assert np.abs(told - llama(LLAMA, state, given).numpy()).max() > 100 * TOLERANCE
        again = config_of(decoder_of_spec(parse_spec(imported.document)))
        assert decoder_of_config(again).rope_scaling == decoder_of_config(config).rope_scaling is not None


def test_what_yarn_leaves_out_is_what_the_library_takes() -> None:
    told = {"type": "yarn", "original_max_position_embeddings": 6, "mscale": 1.0, "mscale_all_dim": 0.5}
    scaling = decoder_of_config(LLAMA | {"rope_scaling": told}).rope_scaling
    assert scaling is not None
    assert scaling.factor == 4.0
    assert scaling.amplitude == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))


def test_a_window_bounds_the_context(tmp_path: Path) -> None:
    config = LLAMA | {"model_type": "mistral", "sliding_window": 8}
    assert length(import_hf_folder(hf_folder(tmp_path, config, llama_state(config)), Wishes())) == 8


def test_as_many_places_as_the_budget_allows_are_kept() -> None:
    decoder = decoder_of_config(LLAMA | {"vocab_size": 1 << 18, "max_position_embeddings": 4096})
    places = parse_spec(document_of(decoder)).input.shape[0]
    assert 256 < places < 512  # logits alone take a megabyte a place, of 512
    with pytest.raises(InvalidSpec, match="budget"):
        document_of(decoder, 512)
    assert parse_spec(document_of(decoder, 100)).input.shape == (100,)


def test_a_gpt2_folder_says_the_same_as_a_spec(tmp_path: Path) -> None:
    state = gpt2_state(GPT2)
    imported = import_hf_folder(hf_folder(tmp_path, GPT2, state), Wishes(context=16))
    given = tokens(GPT2, 16)
    assert np.abs(answers(imported, tmp_path, given) - gpt2(GPT2, state, given).numpy()).max() < TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "bert"},
        {"model_type": "mixtral", "num_local_experts": 8},
        {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 1, "beta_slow": 2}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": "24"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "of_its_own": 1}},
        {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
        {"rope_scaling": {"rope_type": ["yarn"], "factor": 8.0}},
        {"rope_scaling": [8.0]},
        {"head_dim": 16},
        {"quantization_config": {"quant_method": "gptq"}},
        {"hidden_act": "gelu"},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 10**9},
        {"vocab_size": "40"},
        {"tie_word_embeddings": False, "vocab_size": 41},
    ],
    ids=str,
)
def test_what_a_spec_cannot_say_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, LLAMA | change, llama_state(LLAMA))
    with pytest.raises(InvalidSpec):
        import_hf_folder(folder, Wishes())


def test_a_tensor_that_the_config_knows_nothing_of_is_refused(tmp_path: Path) -> None:
    state = llama_state(LLAMA) | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
    with pytest.raises(InvalidSpec, match="q_norm"):
        import_hf_folder(hf_folder(tmp_path, LLAMA, state), Wishes())


# --- GGUF ------------------------------------------------------------------------------------------------------------


def gguf_of(folder: Path, config: dict[str, Any], state: dict[str, Tensor], kind: Any = None, **more: Any) -> Path:
    """As llama.cpp's converter writes it: rows of queries and keys in the order of neighbouring pairs."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors: dict[str, Any] = {}
    for name, value in state.items():
        array = value.numpy()
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        for short, key in heads.items():
            if short in name:
                array = array.reshape(config[key], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        told = names.get_name(name, (".weight", ".bias"))
        tensors[told] = array if kind is None or array.ndim == 1 else (np.ascontiguousarray(array), kind)
    return a_gguf(
        folder,
        tensors,
        llama__block_count=config["num_hidden_layers"],
        llama__context_length=config["max_position_embeddings"],
        llama__embedding_length=config["hidden_size"],
        llama__feed_forward_length=config["intermediate_size"],
        llama__attention__head_count=config["num_attention_heads"],
        llama__attention__head_count_kv=config["num_key_value_heads"],
        llama__attention__layer_norm_rms_epsilon=config["rms_norm_eps"],
        llama__rope__freq_base=config["rope_theta"],
        llama__rope__dimension_count=config["hidden_size"] // config["num_attention_heads"],
        **more,
    )


def metadata_of(**more: Any) -> dict[str, Any]:
    numbers = {"attention.head_count": 2, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    numbers |= {"context_length": 16} | {name.replace("__", "."): value for name, value in more.items()}
    return {"general.architecture": "llama"} | {f"llama.{name}": number for name, number in numbers.items()}


@pytest.mark.parametrize("key", ["rope__scaling__factor", "rope__scale_linear"])
def test_a_gguf_says_how_its_positions_are_stretched(key: str) -> None:
    assert decoder_of_gguf(metadata_of(**{key: 1.0}), 8, tied=True).rope_scaling is None
    assert decoder_of_gguf(metadata_of(**{key: 4.0}), 8, tied=True).rope_scaling == Linear(4.0)
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__original_context_length": 4, key: 4.0}
    assert decoder_of_gguf(metadata_of(**yarn), 8, tied=True).rope_scaling == Yarn(4.0, 4)
    for wrong in ({"rope__scaling__type": "longrope"}, {"rope__scaling__type": "none"}):
        with pytest.raises(InvalidSpec, match=r"rope\.scaling"):
            decoder_of_gguf(metadata_of(**{key: 4.0}, **wrong), 8, tied=True)


def test_a_gguf_that_holds_factors_alone_is_told_by_them() -> None:
    rule = Llama3(32.0, 8192)
    factors = (1 / np.array(rule.multipliers(500000.0, 64))).astype(np.float32)
    told = metadata_of(embedding_length=128, rope__freq_base=500000.0)
    assert decoder_of_gguf(told, 8, tied=True, factors=factors).rope_scaling == rule
    assert decoder_of_gguf(told, 8, tied=True, factors=np.ones(32, np.float32)).rope_scaling is None
    for wrong in (factors[:-1], factors[::-1], factors * 1.01):
        with pytest.raises(InvalidSpec, match="rope_freqs"):
            decoder_of_gguf(told, 8, tied=True, factors=wrong)


def rounded_to(form: Any, value: Tensor) -> Tensor:
    back = gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), form), form)
    return torch.from_numpy(back).view(value.shape)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_says_the_same_as_the_folder_it_was_made_of(tied: bool, tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": tied}
    state = llama_state(config)
    imported = import_gguf(gguf_of(tmp_path, config, state), Wishes())
    given = tokens(config, length(imported))
    assert np.abs(answers(imported, tmp_path, given) - llama(config, state, given).numpy()).max() < TOLERANCE


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_a_quantised_gguf_says_what_its_own_numbers_say(kind: str, tmp_path: Path) -> None:
    state = llama_state(LLAMA)
    form = gguf.GGMLQuantizationType[kind]
    rounded = {name: rounded_to(form, value) if value.dim() == 2 else value for name, value in state.items()}
    imported = import_gguf(gguf_of(tmp_path, LLAMA, state, form), Wishes())
    given = tokens(LLAMA, length(imported))
    got = answers(imported, tmp_path, given)
    assert np.abs(got - llama(LLAMA, rounded, given).numpy()).max() < TOLERANCE


# --- and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_comes_back_as_it_went(family: str, tied: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = (LLAMA if family == "llama" else GPT2) | {"tie_word_embeddings": tied}
    state = llama_state(config) if family == "llama" else gpt2_state(config)
    if family == "gpt2" and not tied:
        state["lm_head.weight"] = state["transformer.wte.weight"] * 2
    imported = import_hf_folder(hf_folder(tmp_path, config, state), Wishes())
    _, weights = imported.write(tmp_path)
    decoder, tensors = export_hf(decoder_of_spec(parse_spec(imported.document)), open_safetensors(weights))
    write_safetensors(tmp_path / "again.safetensors", tensors)
    again = open_safetensors(tmp_path / "again.safetensors")
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name].floats(), value.numpy()) for name, value in state.items())
    told = config_of(decoder)
    assert {key: told[key] for key in config if key not in ("architectures", "activation_function")} == {
        key: value for key, value in config.items() if key not in ("architectures", "activation_function")
    }
    assert open_hf(tmp_path).config["model_type"] == family
