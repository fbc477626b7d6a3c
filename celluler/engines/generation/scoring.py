"""Claimed tokens, given to a model as they stand: what it says of each, in as few passes as memory allows.

A decoder of one slot reads the prompt, then the claimed tokens, chunk by chunk; behind each stands the logits of the
next. What is drawn from them is `celluler.inference`'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from celluler.engines.generation.decoder import open_decoder
from celluler.errors import InvalidSpec
from celluler.inference.borders import off_by
from celluler.inference.caching import Cached, caching_of, longest_of
from celluler.inference.sampling import UndefinedLogits
from celluler.inference.scores import TOP, Claim, Scores, table
from celluler.models.body import Body
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit

_CHUNK = 256
"""Tokens of a prompt in one pass."""
_LOGIT_BYTES = 32 << 20
"""Of the logits of one pass."""
_LEAST_LOGPROB = -1e30


def score(body: Body, module: nn.Module, claim: Claim, slack: float, memory_bytes: int | None = None) -> Scores:
    """module: of the body, in eval. slack: by how much logits may be off, for the borders of what is drawn.

    Raises InvalidSpec for a claim that this model cannot have made, UndefinedLogits, DoesNotFit before anything is
    allocated.
    """
    longest, read = longest_of(body), [*claim.prompt, *claim.tokens[: claim.rows - 1]]
    if len(read) > longest:
        raise InvalidSpec("tokens", f"come to {len(read) + 1} with the prompt, this model takes {longest}")
    if not all(0 <= token < body.vocabulary for token in (*read, *claim.tokens, *claim.ends)):
        raise InvalidSpec("tokens", f"hold one that is not below {body.vocabulary}")
    caching = caching_of(body)
    if memory_bytes is not None and isinstance(caching, Cached):
        needed = RUNTIME_BYTES + body.parameter_bytes + caching.byte_count(1, len(read)) + _LOGIT_BYTES
        if needed > memory_bytes:
            raise DoesNotFit(f"a cache of {len(read)} places, to score in", needed, memory_bytes)
    decoder = open_decoder(body, module, caching, 1, len(read))
    before = len(claim.prompt) - 1
    for start in range(0, before, _CHUNK):
        decoder.prefill(0, read[start : min(before, start + _CHUNK)], last=False)
    found, rest = table(claim.rows), read[before:]
    many = max(1, _LOGIT_BYTES // (4 * body.vocabulary))
    at_once = many if isinstance(caching, Cached) else len(rest)  # without a cache each pass is over all of it
    for start in range(0, len(rest), at_once):
        logits = decoder.score(0, rest[start : start + at_once])[:, : body.vocabulary]
        for row in range(0, len(logits), many):
            _measure_some(logits[row : row + many], claim, slack, found, start + row)
    return found


def _measure_some(logits: Tensor, claim: Claim, slack: float, found: Scores, done: int) -> None:
    """logits: (rows, vocabulary) float32, before each claimed token from `done` on, and before the end."""
    last = done + len(logits) == claim.rows and bool(claim.ends)
    tokens = claim.tokens[done : done + len(logits) - last]
    if tokens:
        found[done : done + len(tokens)] = _measured(logits[: len(tokens)], tokens, claim, slack, done)
    if last:
        behind = logits[-1:].expand(len(claim.ends), -1)
        each = _measured(behind, claim.ends, claim, slack, len(claim.tokens), one_place=True)
        found[-1] = min(each, key=lambda one: (one["off"], one["gap"]))


def _measured(
    logits: Tensor, tokens: Sequence[int], claim: Claim, slack: float, done: int, *, one_place: bool = False
) -> Scores:
    """logits: (tokens, vocabulary) float32. done: tokens of the claim before the first. one_place: all stand there."""
    rows = table(len(tokens))
    with torch.inference_mode():
        logits = torch.where(torch.isfinite(logits), logits, -torch.inf)
        largest, likeliest = logits.max(1)
        if bool((largest == -torch.inf).any()):
            raise UndefinedLogits("the model gave no logit that is a number")
        claimed = torch.tensor(tokens, device=logits.device)
        own = logits.gather(1, claimed[:, None])[:, 0]
        rows["gap"] = (largest - own).cpu()
        rows["logprob"] = torch.clamp(own - logits.logsumexp(1), min=_LEAST_LOGPROB).cpu()
        rows["rank"] = (logits > own[:, None]).sum(1).cpu()
        rows["same"] = (likeliest == claimed).cpu()
        top = logits.topk(min(TOP, logits.shape[1]), 1).indices.cpu().numpy()
        rows["top"] = np.concatenate((top, np.repeat(top[:, :1], TOP - top.shape[1], 1)), 1)
        if claim.sampling.temperature:
            raw = logits.cpu().numpy()
            for row, token in enumerate(tokens):
                place = claim.place + done + (0 if one_place else row)
                rows["off"][row], rows["same"][row] = off_by(raw[row], claim.sampling, place, token, slack)
    return rows
