"""Objectives that join nets in ways of their own, or need random numbers: what a step of each moves, and towards what.

A step is one phase or several, one after the other on the same samples: each names the net that moves, and the loss
that moves it. Whatever is drawn is a function of the step and the sample (`Draws`), so that a replay draws the same.
Knows nothing of optimizers, rounds or micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from celluler.engines.build import net_of
from celluler.engines.draws import Draws
from celluler.engines.objectives import loss_of
from celluler.models.body import Body
from celluler.models.objectives import Adversarial, Contrastive, Denoising, Objective, Variational

_LARGEST_LOG_VARIANCE = 20.0


class Run:
    """A module's nets, with float32 out of whatever precision is inside."""

    def __init__(
        self, module: nn.Module, precision: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """precision: a context in which the nets compute."""
        self._module, self._precision = module, precision

    def __call__(self, x: Tensor, net: str = "", time: Tensor | None = None) -> Tensor:
        """net: its name; the empty one for all, one through the other. time: (batch,) float32, shares of the steps."""
        chosen = net_of(self._module, net)
        with self._precision():
            out: Tensor = chosen(x) if time is None else chosen(x, time)
        return out.float()

    @property
    def named(self) -> bool:
        """The module is made of named nets."""
        return isinstance(self._module, nn.ModuleDict)


Loss = Callable[[Run, Tensor, Tensor, Draws], Tensor]
"""(run, x, y, draws) → mean over the batch. x: (batch, *input). y: as `loss_of` takes it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """net: what moves; empty for everything."""

    net: str
    loss: Loss


def phases_of(body: Body) -> tuple[Phase, ...]:
    """What a step does, in order."""
    match objective := body.objective:
        case Contrastive():
            return (Phase("", lambda run, x, _, draws: contrast(objective, run, x, draws)[0]),)
        case Variational():
            return (Phase("", lambda run, x, _, draws: evidence(objective, run, x, draws).mean() / x[0].numel()),)
        case Denoising():
            return (Phase("", lambda run, x, _, draws: denoising_error(objective, run, x, draws)),)
        case Adversarial():
            return (
                Phase("discriminator", lambda run, x, _, draws: _told_apart(objective, run, x, draws)),
                Phase("generator", lambda run, x, _, draws: _taken_for_data(objective, run, x, draws)),
            )
        case _:
            return (Phase("", lambda run, x, y, _: loss_of(body, run(x), y)),)


# --- contrastive -----------------------------------------------------------------------------------------------------


def contrast(objective: Contrastive, run: Run, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """(mean loss, share of the views whose nearest is their own other one). Chen et al. 2020, equation 1."""
    views = [_view(objective, x, draws.uniform(purpose, tuple(x.shape[1:]))) for purpose in ("first", "second")]
    directions = nn.functional.normalize(torch.cat([run(view) for view in views]), dim=1)  # (2·batch, width)
    likeness = directions @ directions.T / objective.temperature
    itself = torch.eye(len(likeness), dtype=torch.bool, device=x.device)
    likeness = likeness.masked_fill(itself, -math.inf)
    other = torch.arange(len(likeness), device=x.device).roll(len(x))
    return nn.functional.cross_entropy(likeness, other), (likeness.argmax(dim=1) == other).float().mean()


def _view(objective: Contrastive, x: Tensor, drawn: Tensor) -> Tensor:
    return x * (drawn >= objective.hidden).to(x.dtype)


# --- variational -----------------------------------------------------------------------------------------------------


def evidence(objective: Variational, run: Run, x: Tensor, draws: Draws) -> Tensor:
    """(batch,): of each sample the negative of its evidence's lower bound, in nats, without `constant_of`."""
    mean, log_variance = posterior(run, x)
    latent = mean + (log_variance / 2).exp() * draws.normal("latent", (objective.latent,))
    misfit = (run(latent, "decoder") - x).square().flatten(1).sum(dim=1) / (2 * objective.deviation**2)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
    return misfit + divergence


def posterior(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and logarithms of the variances: (batch, latent) each."""
    mean, log_variance = run(x, "encoder").chunk(2, dim=1)
    return mean, log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)


def constant_of(objective: Variational, elements: int) -> float:
    """What a density of so many elements, normal with that deviation, adds to the bound's negative."""
    return elements * (math.log(objective.deviation) + math.log(2 * math.pi) / 2)


# --- adversarial -----------------------------------------------------------------------------------------------------


def _told_apart(objective: Adversarial, run: Run, x: Tensor, draws: Draws) -> Tensor:
    with torch.no_grad():
        made = run(draws.normal("false", (objective.latent,)), "generator")
    softplus = nn.functional.softplus  # of a logit with the other sign: the cross-entropy of a sure answer
    told, steepness = _steepness(run, x) if objective.penalty else (run(x, "discriminator"), torch.zeros(()))
    apart = softplus(-told).mean() + softplus(run(made, "discriminator")).mean()
    return apart + objective.penalty / 2 * steepness


def _steepness(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what the discriminator tells of x, mean squared length of its gradient there)."""
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only kind of attention whose gradient has a gradient
        told = run(x, "discriminator")
    (gradient,) = torch.autograd.grad(told.sum(), x, create_graph=True)
    return told, gradient.square().flatten(1).sum(dim=1).mean()


def _taken_for_data(objective: Adversarial, run: Run, x: Tensor, draws: Draws) -> Tensor:
    made = run(draws.normal("made", (objective.latent,)), "generator")
    return nn.functional.softplus(-run(made, "discriminator")).mean()


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Between two sets of samples, (n, …) and (m, …), over all pairs: not negative, and 0 for equal ones. Székely and
    Rizzo 2013."""
    one, other = one.flatten(1), other.flatten(1)
    between, within, beyond = (_mean_distance(a, b) for a, b in ((one, other), (one, one), (other, other)))
    return max(0.0, 2 * between - within - beyond)


def _mean_distance(one: Tensor, other: Tensor) -> float:
    return float(torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").double().mean())


# --- denoising -------------------------------------------------------------------------------------------------------


def denoising_error(objective: Denoising, run: Run, x: Tensor, draws: Draws) -> Tensor:
    """Mean square of what is told amiss, each sample at a step of its own."""
    step = draws.below("step", objective.steps) + 1
    noise = draws.normal("mixed", tuple(x.shape[1:]))
    cosine, sine = (of(math.pi / 2 * step.double() / objective.steps).float() for of in (torch.cos, torch.sin))
    cosine, sine = (one.reshape(-1, *(1,) * (x.dim() - 1)) for one in (cosine, sine))
    told = run(cosine * x + sine * noise, time=step / objective.steps)
    return nn.functional.mse_loss(told, cosine * noise - sine * x)


def denoise(objective: Denoising, run: Run, noise: Tensor) -> Tensor:
    """Samples out of noise, (batch, *input): as many passes as there are steps."""
    turn = math.pi / 2 / objective.steps
    x = noise
    for step in range(objective.steps, 0, -1):
        told = run(x, time=torch.full((len(x),), step / objective.steps))
        x = math.cos(turn) * x - math.sin(turn) * told
    return x


# --- samples ---------------------------------------------------------------------------------------------------------


def sample(objective: Objective, run: Run, draws: Draws, shape: tuple[int, ...]) -> Tensor:
    """One for each of the draws' numbers: (n, *shape). The objective is one that makes samples."""
    match objective:
        case Variational():
            return run(draws.normal("sample", (objective.latent,)), "decoder")
        case Adversarial():
            return run(draws.normal("sample", (objective.latent,)), "generator")
        case Denoising():
            return denoise(objective, run, draws.normal("sample", shape))
    raise AssertionError(f"{objective.KIND} makes no samples")


def answer(body: Body, run: Run, x: Tensor, output: str) -> Tensor:
    """What a model tells of x, (n, *input): one of `outputs_of(body)` but samples."""
    match body.objective, output:
        case Variational(), "embedding":
            return posterior(run, x)[0]
        case Variational(), _:
            return run(posterior(run, x)[0], "decoder")
        case (Contrastive(), _) | (_, "embedding"):
            return run(x, "encoder" if run.named else "")
        case _, "probabilities":
            return torch.softmax(run(x), dim=1)
        case _, "labels":
            return run(x).argmax(dim=1)
        case _, "next_token":
            return run(x)[:, -1]
    return run(x)
