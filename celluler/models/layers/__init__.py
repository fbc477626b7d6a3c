"""The vocabulary of declarative architectures: what each layer is called, takes, holds and costs.

`plan` follows one sample through a layer: it checks what comes in, books tensors and costs in a ledger, and says what
goes out. Nothing is allocated; `celluler.engines.build` makes modules of the same layers. Knows no torch.
"""

from celluler.models.layers.base import FLOAT_BYTES, Budget, Layer, Ledger, Place, Shape, Signal, TensorSpec
from celluler.models.layers.blocks import KINDS, Body, Repeat, Residual, count_layers, plan_layers, read_layer, walk
from celluler.models.layers.elements import Activation, Dense, Dropout, FeedForward, Flatten, Reshape, SwiGLU
from celluler.models.layers.images import AvgPool2d, Conv2d, ConvTranspose2d, GlobalAvgPool, MaxPool2d, Upsample2d
from celluler.models.layers.norms import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from celluler.models.layers.sequences import Attention, Embedding, First, Last, Lstm, MeanPool, Positions
from celluler.models.layers.timesteps import Timestep

__all__ = [
    "FLOAT_BYTES",
    "KINDS",
    "Activation",
    "Attention",
    "AvgPool2d",
    "BatchNorm",
    "Body",
    "Budget",
    "Conv2d",
    "ConvTranspose2d",
    "Dense",
    "Dropout",
    "Embedding",
    "FeedForward",
    "First",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "Last",
    "Layer",
    "LayerNorm",
    "Ledger",
    "Lstm",
    "MaxPool2d",
    "MeanPool",
    "Place",
    "Positions",
    "Repeat",
    "Reshape",
    "Residual",
    "RmsNorm",
    "Shape",
    "Signal",
    "SwiGLU",
    "TensorSpec",
    "Timestep",
    "Upsample2d",
    "count_layers",
    "plan_layers",
    "read_layer",
    "walk",
]
