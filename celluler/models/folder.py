"""A model in a folder, as its author writes it: a document that says what to compute, and the weights.

`model.json` is the document of a body; which kind it is, its fields tell. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celluler.errors import LocalError

DOCUMENT = "model.json"
WEIGHTS = "weights.safetensors"


def kind_of(document: Mapping[str, Any]) -> str:
    """Of the body that a document describes. What is wrong with it is seen when it is read."""
    return "graph" if "graph" in document else "spec"


def files_of(folder: Path) -> tuple[Path, Path | None]:
    """Document, and weights where there are any. Raises LocalError for a folder that is no model's."""
    document, weights = folder / DOCUMENT, folder / WEIGHTS
    if not document.is_file():
        raise LocalError(f"{folder} holds no {DOCUMENT}", hint="celluler.publish(module, …) writes such a folder")
    return document, weights if weights.is_file() else None
