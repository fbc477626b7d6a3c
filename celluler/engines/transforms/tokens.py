"""A tokenizer of the `tokenizers` package as a step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec, LocalError
from celluler.models.transforms.programs import Tokenizer
from celluler.models.transforms.run import Program
from celluler.models.transforms.texts import framed, texts_of


def tokenizer_program(step: Tokenizer) -> Program:
    """Raises InvalidSpec for what the package does not read, LocalError without the package."""
    try:
        import tokenizers  # noqa: PLC0415
    except ImportError as error:
        hint = "pip install 'celluler[transforms]'"
        raise LocalError("a tokenizer step needs the package tokenizers", hint=hint) from error
    try:
        read = tokenizers.Tokenizer.from_str(json.dumps(dict(step.tokenizer)))
    except Exception as error:  # whatever the package raises: its own errors are plain Exceptions
        raise InvalidSpec("tokenizer", f"is not read: {str(error)[:128]}") from error
    read.no_padding()
    read.no_truncation()

    def run(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rows = []
        for text in texts_of(x):
            numbers = read.encode(text.decode("utf-8"), add_special_tokens=step.special).ids
            rows.append(framed(numbers, step.length, None, None, step.pad))
        return np.array(rows, np.int64)

    return run
