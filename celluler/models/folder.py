"""A model in a folder, as its author writes it: a document that says what to compute, and the weights.

`model.json` is the document of a body; which kind it is, its fields tell. Beside it may lie what stands before and
after the model, a tokenizer and a chat template. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celluler.errors import LocalError
from celluler.models.beside import FILE_NAMES

DOCUMENT = "model.json"
WEIGHTS = "weights.safetensors"
PREPROCESS, POSTPROCESS = "preprocess.json", "postprocess.json"
BESIDE = (PREPROCESS, POSTPROCESS, *FILE_NAMES.values())
"""What else may belong to the model."""


def kind_of(document: Mapping[str, Any]) -> str:
    """Of the body that a document describes. What is wrong with it is seen when it is read."""
    return "graph" if "graph" in document else "spec"


def files_of(folder: Path) -> tuple[Path, Path | None]:
    """Document, and weights where there are any. Raises LocalError for a folder that is no model's."""
    document, weights = folder / DOCUMENT, folder / WEIGHTS
    if not document.is_file():
        raise LocalError(f"{folder} holds no {DOCUMENT}", hint="celluler.publish(module, …) writes such a folder")
    return document, weights if weights.is_file() else None


def beside_in(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Documents (`preprocess`, `postprocess`) and files, by their names in a manifest, that lie there.

    Raises LocalError for a link: whoever made the folder may have made it to any file of this machine.
    """
    documents = {"preprocess": folder / PREPROCESS, "postprocess": folder / POSTPROCESS}
    files = {name: folder / file for name, file in FILE_NAMES.items()}
    for path in (*documents.values(), *files.values()):
        if path.is_symlink():
            raise LocalError(f"{path} is a link", hint="put the file itself into the folder")
    return _there(documents), _there(files)


def _there(paths: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path.is_file()}
