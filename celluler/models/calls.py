"""What may be asked of a model, told from its body alone: a node refuses the rest without waking a worker."""

from __future__ import annotations

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.layers import Shape
from celluler.models.objectives import (
    Adversarial,
    Classification,
    Contrastive,
    Denoising,
    NextToken,
    Reconstruction,
    Variational,
)
from celluler.models.spec import Architecture

SAMPLE, NEXT_TOKEN = "sample", "next_token"


def outputs_of(body: Body) -> dict[str, tuple[str, Shape]]:
    """What may be asked of a model: the name of each output, its dtype, and its shape for one sample at its longest.

    raw: what the nets give that answer, such as logits or a regression's numbers. probabilities, labels: of a
    classification. next_token: logits of what follows the last place. reconstruction: the sample as it is given back.
    embedding: what the encoder gives; of a variational autoencoder the means. sample: of seeds in place of inputs.
    """
    raw: dict[str, tuple[str, Shape]] = {"raw": ("float32", body.output)}
    match objective := body.objective:
        case Adversarial() | Denoising():
            return {SAMPLE: ("float32", body.output)}
        case Variational():
            raw |= {"reconstruction": raw["raw"], SAMPLE: raw["raw"], "embedding": ("float32", (objective.latent,))}
        case Classification():
            raw |= {"probabilities": raw["raw"], "labels": ("int64", ())}
        case NextToken():
            raw |= {NEXT_TOKEN: ("float32", (objective.vocabulary,))}
        case Reconstruction():
            raw |= {"reconstruction": raw["raw"]}
        case Contrastive():
            raw |= {"embedding": raw["raw"]}
    encoder = body.net("encoder") if isinstance(body, Architecture) else None
    if encoder is not None and "embedding" not in raw:
        raw |= {"embedding": ("float32", encoder.out.shape)}
    return raw


def check_call(body: Body, dtype: str, shape: tuple[int, ...], output: str) -> None:
    """A batch of that dtype and shape (with the batch axis) fits the model, and it gives that output.

    For samples, seeds: (n,) int64. Raises InvalidSpec: `input.dtype`, `input.shape`, `output`. The values themselves
    are the worker's to check.
    """
    allowed = outputs_of(body)
    if output not in allowed:
        raise InvalidSpec("output", f"is {output[:32]!r}; this model gives {', '.join(allowed)}")
    wanted = ("int64", ()) if output == SAMPLE else (body.input.dtype, body.input.shape)
    least = 1 if output == SAMPLE else body.batch[0]
    if dtype != wanted[0]:
        raise InvalidSpec("input.dtype", f"is {dtype[:32]}, must be {wanted[0]}")
    if len(shape) != len(wanted[1]) + 1 or shape[0] < least:
        sides = "".join(f", {side}" for side in wanted[1])
        raise InvalidSpec("input.shape", f"is {shape}, must be (n{sides}){f', n at least {least}' * (least > 1)}")
    if output != SAMPLE:
        body.answer_shape(shape[1:])
