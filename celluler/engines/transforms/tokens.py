"""A tokenizer of the `tokenizers` package: read from a model's own file or a step, in a confined worker alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec, LocalError
from celluler.models.beside import TOKENIZER, check_size
from celluler.models.transforms.programs import Tokenizer
from celluler.models.transforms.run import Program
from celluler.models.transforms.texts import framed, texts_of


def read_tokenizer(step: Tokenizer, file: Path | None, vocabulary: int | None = None) -> Any:
    """The package's object, without its own cutting and filling up. file: the model's own tokenizer.

    vocabulary: that the tokens must be of, where they reach a model. Raises InvalidSpec for what the package does not
    read or that gives numbers which the model does not know, LocalError without the package.
    """
    try:
        import tokenizers  # noqa: PLC0415
    except ImportError as error:
        hint = "pip install 'celluler[transforms]'"
        raise LocalError("a tokenizer step needs the package tokenizers", hint=hint) from error
    try:
        read = tokenizers.Tokenizer.from_str(_document(step, file))
    except InvalidSpec:
        raise
    except Exception as error:  # whatever the package raises: its own errors are plain Exceptions
        raise InvalidSpec("tokenizer", f"is not read: {str(error)[:128]}") from error
    read.no_padding()
    read.no_truncation()
    largest = max(step.pad, *read.get_vocab(with_added_tokens=True).values())
    if vocabulary is not None and largest >= vocabulary:
        raise InvalidSpec("tokenizer", f"may give {largest}, and the model knows numbers below {vocabulary}")
    return read


def tokenizer_program(step: Tokenizer, file: Path | None = None, vocabulary: int | None = None) -> Program:
    """As `read_tokenizer`."""
    read = read_tokenizer(step, file, vocabulary)

    def run(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rows = []
        for text in texts_of(x):
            numbers = encoded(read, text.decode("utf-8"), special=step.special)
            rows.append(framed(numbers, step.length, None, None, step.pad))
        return np.array(rows, np.int64)

    return run


def encoded(read: Any, text: str, *, special: bool) -> list[int]:
    """Raises InvalidSpec for a text that the tokenizer has no numbers for."""
    try:
        return list(read.encode(text, add_special_tokens=special).ids)
    except Exception as error:  # as above
        raise InvalidSpec("tokenizer", f"does not take this text: {str(error)[:128]}") from error


def _document(step: Tokenizer, file: Path | None) -> str:
    if step.tokenizer is not None:
        return json.dumps(dict(step.tokenizer))
    if file is None:
        raise InvalidSpec("tokenizer", "is the model's own, and the model has none")
    try:
        check_size(TOKENIZER, file.stat().st_size)
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise LocalError(f"the tokenizer cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidSpec("tokenizer", "is not UTF-8") from None
