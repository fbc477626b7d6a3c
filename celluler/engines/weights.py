"""Weights files into and out of torch: see `celluler.models.weights` for what a file must be and how it is ordered."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from celluler.models.body import Body
from celluler.models.weights import (
    check_weights,
    initial_vector,
    initial_weights,
    load_vector,
    save_vector,
)

__all__ = ["check_weights", "initial_vector", "initial_weights", "load_tensor", "load_vector", "save_vector"]


def load_tensor(architecture: Body, path: Path) -> Tensor:
    """The flat vector of a weights file, mapped where possible. Raises InvalidSpec for a file that does not fit."""
    return torch.from_numpy(load_vector(architecture, path))
