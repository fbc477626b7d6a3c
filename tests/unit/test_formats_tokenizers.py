"""The tokenizer and the chat template of a folder: taken along, written back, and at work before the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from celluler.client.calls_models import beside
from celluler.engines.formats.convert import convert
from celluler.engines.load import load_model
from celluler.engines.transforms.served import Served
from celluler.errors import InvalidSpec, LocalError, WorkerFailed
from celluler.formats.hf_folders import open_hf
from celluler.formats.importing import Wishes, import_hf_folder
from celluler.formats.tokenizers import read_beside
from celluler.models.body import parse_body
from celluler.models.interface import Interface, read_interface
from celluler.models.transforms.decoding import decoded
from celluler_node.cli.convert_commands import _check_written
from tests.support.decoders import LLAMA, hf_folder, llama_state

tokenizers = pytest.importorskip("tokenizers")

WORDS = ("<unk>", "<pad>", "one", "two", "three", "héé")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tokenizer(words: tuple[str, ...] = WORDS) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<pad>"])
    return str(made.to_str())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = hf_folder(tmp_path / "hf", LLAMA, llama_state(LLAMA))
    (made / "tokenizer.json").write_text(tokenizer(), encoding="utf-8")
    (made / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "chat_template": TEMPLATE}))
    return made


def converted(source: Path, to: str, folder: Path) -> tuple[str, ...]:
    folder.mkdir()
    return convert(source, None, to, Wishes(context=8 if to == "celluler" else None), folder).files


def served(folder: Path) -> tuple[Interface, Served]:
    body = parse_body("spec", (folder / "model.json").read_bytes())
    interface = read_interface(body, (folder / "preprocess.json").read_bytes())
    model = load_model(body, folder / "weights.safetensors").predictor()
    return interface, Served(model, interface, folder / "tokenizer.json")


def text(*lines: str) -> np.ndarray[Any, Any]:
    rows = [line.encode() for line in lines]
    width = max(map(len, rows))
    return np.frombuffer(b"".join(row.ljust(width, b"\0") for row in rows), np.uint8).reshape(len(rows), width)


def test_a_folder_brings_its_tokenizer_and_takes_it_back(folder: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    files = converted(folder, "celluler", ours)
    assert set(files) == {path.name for path in ours.iterdir()}
    said, found = beside(ours, {"preprocess": None})
    assert said["preprocess"] == {
        "transforms": 1,
        "input": {"name": "text", "dtype": "text", "shape": [128]},
        "steps": [{"kind": "tokenizer", "length": 8, "pad": 1}],
    }
    assert found == {"tokenizer": ours / "tokenizer.json", "chat-template": ours / "chat_template.jinja"}
    assert (ours / "chat_template.jinja").read_text() == TEMPLATE
    converted(ours, "hf", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == TEMPLATE
    open_hf(tmp_path / "back")


def test_what_begins_and_ends_texts_is_found_wherever_a_folder_names_it_and_goes_back(
    folder: Path, tmp_path: Path
) -> None:
    named = {"pad_token": "<pad>", "eos_token": {"content": "two"}, "bos_token": "none such"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 3, 900, True], "bos_token_id": 2}))
    converted(folder, "celluler", tmp_path / "ours")
    interface, model = served(tmp_path / "ours")
    assert interface.ends == {3, 5}
    assert model.codec is not None
    assert model.codec.marks == {"bos_token": "one", "eos_token": "two"}
    converted(tmp_path / "ours", "hf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {
        "bos_token_id": 2,
        "eos_token_id": [3, 5],
    }
    converted(tmp_path / "back", "celluler", tmp_path / "again")
    assert served(tmp_path / "again")[0].ends == {3, 5}


def test_a_folder_that_names_no_end_is_told_about(folder: Path) -> None:
    assert any("no token is named that ends a text" in note for note in import_hf_folder(folder, Wishes()).notes)


def test_a_text_is_answered_by_what_follows_it_and_not_by_what_follows_the_filling(
    folder: Path, tmp_path: Path
) -> None:
    converted(folder, "celluler", tmp_path / "ours")
    interface, model = served(tmp_path / "ours")
    with pytest.raises(InvalidSpec, match=r"steps\[0\].tokenizer: is the model's own, and the model has none"):
        interface.check_tokenizer(given=False)
    interface.check_tokenizer(given=True)
    raw = model.predict(text("one two", "three one two héé"), "raw")
    followed = model.predict(text("one two", "three one two héé"), "next_token")
    assert np.allclose(followed, raw[[0, 1], [1, 3]], atol=1e-6)
    assert model.codec is not None
    assert model.codec.encode("three one two héé") == [4, 2, 3, 5]
    assert decoded(model.codec, [4, 2, 3, 5, 1]) == "three one two héé"


def test_numbers_that_the_model_does_not_know_are_refused_by_the_worker(folder: Path, tmp_path: Path) -> None:
    converted(folder, "celluler", tmp_path / "ours")
    words = tuple(f"w{n}" for n in range(LLAMA["vocab_size"]))
    (tmp_path / "ours" / "tokenizer.json").write_text(tokenizer(words))
    with pytest.raises(InvalidSpec, match=r"preprocess.steps\[0\].tokenizer: may give 40, and the model knows"):
        served(tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidSpec, match=r"preprocess.steps\[0\].tokenizer: is not read"):
        served(tmp_path / "ours")


def test_a_tokenizer_of_another_model_is_left_out_and_that_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer(tuple(f"w{n}" for n in range(41))))
    imported = import_hf_folder(folder, Wishes(context=8))
    assert set(imported.beside) == {"chat_template.jinja"}
    assert any("left out: it gives 41" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer.json", '{"model": {}}', "holds no vocabulary"),
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}', "the number '-1'"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1, "a": 2}}}', "twice"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1}}, "added_tokens": [{}]}', "is no token"),
        ("tokenizer_config.json", "[]", "must be a JSON object"),
        ("tokenizer_config.json", json.dumps({"chat_template": "x" * (65 << 10)}), "limit"),
        ("chat_template.jinja", "x" * (65 << 10), "more than 65536 bytes"),
    ],
)
def test_what_is_no_tokenizer_and_what_is_too_large_is_refused(
    name: str, content: str, problem: str, folder: Path
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidSpec, match=problem):
        read_beside(folder, 40, 8)


def test_a_link_in_a_folder_is_not_followed_to_be_published(folder: Path, tmp_path: Path) -> None:
    converted(folder, "celluler", tmp_path / "ours")
    for name in ("tokenizer.json", "preprocess.json"):
        (tmp_path / "ours" / name).rename(tmp_path / name)
        (tmp_path / "ours" / name).symlink_to(tmp_path / name)
        with pytest.raises(LocalError, match="is a link"):
            beside(tmp_path / "ours", {})
        (tmp_path / "ours" / name).unlink()


def test_what_a_worker_did_not_tell_of_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/etc/hostname")
    told = {"model.json", "weights.safetensors"}
    with pytest.raises(WorkerFailed, match=r"tokenizer\.json"):
        _check_written(tmp_path, told)
    (tmp_path / "tokenizer.json").unlink()
    _check_written(tmp_path, told)
    with pytest.raises(WorkerFailed, match="id_ed25519"):
        _check_written(tmp_path, told | {"id_ed25519"})
