"""What a model is for: which nets it is made of, what they must give, what they are held against. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Real, Whole, declare
from celluler.models.layers import Attention, Layer, Shape, Signal, Timestep, walk

NET_NAMES = ("encoder", "head", "projection", "decoder", "generator", "discriminator")
"""What a net of a document may be called."""
PLAIN: tuple[str, ...] = ()
"""Of a document whose one net has no name: its `layers`."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One sample that went through all layers. vocabulary: integers that may come in are below it."""

    given: Signal
    out: Signal
    vocabulary: int
    layers: tuple[Layer, ...]


class Nets(Protocol):
    """The nets of a document, while it is read."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of all nets."""

    @property
    def vocabulary(self) -> int:
        """Integers that may come in are below it, as far as nets were gone through."""

    def through(self, name: str, given: Signal) -> Signal:
        """One sample through a net, once each; the empty name is that of `layers`. Raises InvalidSpec."""


class _Wired:
    """Of an objective that joins its nets in a way of its own."""

    __slots__ = ()
    KIND: ClassVar[str]
    FROM_INPUT: ClassVar[bool] = True
    PASSES: ClassVar[int] = 1

    def check(self, planned: Planned) -> None:
        """Raises InvalidSpec: no single function answers it."""
        raise InvalidSpec("objective.kind", f"{self.KIND} needs nets of its own, and layers")


class _Straight:
    """Of an objective whose nets follow one another, each on what the one before gives: one function, from the input
    to what is held against an answer."""

    __slots__ = ()
    PASSES: ClassVar[int] = 1

    def plan(self, given: Signal, nets: Nets) -> Shape:
        out = given
        for name in nets.names or ("",):
            out = nets.through(name, out)
        self.check(Planned(given, out, nets.vocabulary, nets.layers))
        return out.shape

    def check(self, planned: Planned) -> None:
        """Raises InvalidSpec when this is no answer."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Classification(_Straight):
    """One class out of several: the last layer gives one logit a class; trained by cross-entropy. With the nets
    `encoder` and `head`, what the encoder gives is the sample's embedding."""

    KIND: ClassVar[str] = "classification"
    FROM_INPUT: ClassVar[bool] = False
    METRIC: ClassVar[str] = "accuracy"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN, ("encoder", "head"))
    classes: int = declare(Whole(2, MAX_SIZE), "must be the width of the last layer")

    def check(self, planned: Planned) -> None:
        if planned.out.shape != (self.classes,):
            raise InvalidSpec("objective.classes", f"is {self.classes}, but the layers give {planned.out.shape}")


@dataclass(frozen=True, slots=True)
class Regression(_Straight):
    """Numbers: whatever shape the last layer gives; trained by mean squared error. With the nets `encoder` and `head`,
    what the encoder gives is the sample's embedding."""

    KIND: ClassVar[str] = "regression"
    FROM_INPUT: ClassVar[bool] = False
    METRIC: ClassVar[str] = "mean_squared_error"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN, ("encoder", "head"))

    def check(self, planned: Planned) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NextToken(_Straight):
    """A language model: int64 (time) comes in, at every place the last layer gives one logit for each number that may
    stand at the next; trained by cross-entropy against the input itself, one place on. Data needs no labels.

    Attention must be causal: no place may see what it is to tell.
    """

    KIND: ClassVar[str] = "next_token"
    FROM_INPUT: ClassVar[bool] = True
    METRIC: ClassVar[str] = "perplexity"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN,)
    vocabulary: int = declare(Whole(2, MAX_SIZE), "must be the width of the last layer, and that of the embedding")

    def check(self, planned: Planned) -> None:
        given, out = planned.given, planned.out
        if given.dtype != "int64" or len(given.shape) != 1 or given.shape[0] < 2:
            raise InvalidSpec("input", f"is {given.dtype} {given.shape}, next_token takes int64 (time), two at least")
        if out.shape != (*given.shape, self.vocabulary):
            path, wanted = "objective.vocabulary", (*given.shape, self.vocabulary)
            raise InvalidSpec(path, f"asks for {wanted}, but the layers give {out.shape}")
        if planned.vocabulary > self.vocabulary:
            raise InvalidSpec("objective.vocabulary", f"is less than the {planned.vocabulary} of the embedding")
        if any(isinstance(layer, Attention) and not layer.causal for layer in walk(planned.layers)):
            raise InvalidSpec("objective.kind", "next_token needs attention that is causal")


@dataclass(frozen=True, slots=True)
class Reconstruction(_Straight):
    """An autoencoder: the last layer gives what came in; trained by mean squared error against the input itself. Data
    needs no labels. With the nets `encoder` and `decoder`, what the encoder gives is the sample's embedding."""

    KIND: ClassVar[str] = "reconstruction"
    FROM_INPUT: ClassVar[bool] = True
    METRIC: ClassVar[str] = "reconstruction_error"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN, ("encoder", "decoder"))

    def check(self, planned: Planned) -> None:
        if planned.out != planned.given:
            given, out = ((one.dtype, one.shape) for one in (planned.given, planned.out))
            raise InvalidSpec("objective.kind", f"reconstruction of {given}, but the layers give {out}")


@dataclass(frozen=True, slots=True)
class Contrastive(_Wired):
    """Embeddings without labels: each sample is seen twice, each time with other elements set to zero, and of all in
    its batch its embedding must be nearest to its own other one, by the cosine; trained by cross-entropy over the batch
    at that temperature. A net `projection` behind the `encoder` is compared in its place while training. Of int64, zero
    should stand for what is not known. Source: Chen et al. 2020, algorithm 1, with the views said above.
    """

    KIND: ClassVar[str] = "contrastive"
    METRIC: ClassVar[str] = "matched"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN, ("encoder", "projection"))
    PASSES: ClassVar[int] = 2
    hidden: float = declare(Real(0.01, 1.0), "share of the elements set to zero in a view", default=0.25)
    temperature: float = declare(Real(0.01, 100.0), "cosines are divided by it", default=0.2)

    def plan(self, given: Signal, nets: Nets) -> Shape:
        first, *rest = nets.names or ("",)
        embedding = last = nets.through(first, given)
        for name in rest:
            last = nets.through(name, last)
        for path, one in ((_path(first), embedding), (_path((first, *rest)[-1]), last)):
            if len(one.shape) != 1:
                raise InvalidSpec(path, f"must give a vector to be compared, gives {one.shape}")
        return embedding.shape


@dataclass(frozen=True, slots=True)
class Variational(_Wired):
    """A variational autoencoder: of a sample, the `encoder` gives (2·latent), the means of a normal distribution and
    the logarithms of its variances; of a draw from it, the `decoder` gives the sample back. Trained by the evidence
    lower bound, with elements normal about what the decoder gives. Data needs no labels.

    The loss is the bound's negative an element, without its constant; the metric `elbo` is the bound, in nats a sample.
    Source: Kingma and Welling 2014, equation 10.
    """

    KIND: ClassVar[str] = "vae"
    METRIC: ClassVar[str] = "elbo"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (("encoder", "decoder"),)
    latent: int = declare(Whole(1, MAX_SIZE), "numbers that a sample goes through")
    deviation: float = declare(
        Real(0.001, 1000.0), "standard deviation of an element about what the decoder gives", default=0.25
    )

    def plan(self, given: Signal, nets: Nets) -> Shape:
        _need_numbers(given, self.KIND)
        _need_shape("encoder", nets.through("encoder", given), (2 * self.latent,))
        _need_shape("decoder", nets.through("decoder", Signal("float32", (self.latent,))), given.shape)
        return given.shape


@dataclass(frozen=True, slots=True)
class Adversarial(_Wired):
    """Samples by two nets against each other: of (latent) normal numbers the `generator` gives a sample, and of a
    sample the `discriminator` gives one logit, that it is of the data. Each step moves the discriminator on a batch of
    both, and then the generator, towards samples that are taken for data. Data needs no labels.

    The penalty keeps the discriminator from being steep where data are: half the squared length of its gradient there,
    so many times. Without it two nets with momentum, which rounds have, only circle. Judged by the energy distance
    between samples and data, which is zero when nothing tells them apart. Sources: Goodfellow et al. 2014, algorithm 1,
    with the loss of its section 3; Mescheder et al. 2018, section 4.1, for the penalty; Székely and Rizzo 2013, for the
    distance.
    """

    KIND: ClassVar[str] = "adversarial"
    METRIC: ClassVar[str] = "energy_distance"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (("generator", "discriminator"),)
    PASSES: ClassVar[int] = 3
    latent: int = declare(Whole(1, MAX_SIZE), "numbers that a sample is made of")
    penalty: float = declare(Real(0.0, 1000.0), "on a steep discriminator; 0 for none", default=1.0)

    def plan(self, given: Signal, nets: Nets) -> Shape:
        _need_numbers(given, self.KIND)
        _need_shape("generator", nets.through("generator", Signal("float32", (self.latent,))), given.shape)
        _need_shape("discriminator", nets.through("discriminator", given), (1,))
        return given.shape


@dataclass(frozen=True, slots=True)
class Denoising(_Wired):
    """Samples out of noise: at step t of `steps`, a sample x and normal numbers e are mixed to cos(φ)·x + sin(φ)·e with
    φ = π·t / (2·steps); of that and of t / steps the layers give cos(φ)·e − sin(φ)·x; trained by mean squared error at
    steps drawn at random. Sampling goes from e, at the last step, to x in as many steps. `timestep` layers are told the
    step; one at least. Data needs no labels.

    Sources: Ho et al. 2020, algorithms 1 and 2; Salimans and Ho 2022, appendix D, for what is told and how it is
    sampled.
    """

    KIND: ClassVar[str] = "denoising"
    METRIC: ClassVar[str] = "denoising_error"
    NETS: ClassVar[tuple[tuple[str, ...], ...]] = (PLAIN,)
    steps: int = declare(Whole(2, 1000), "from noise to a sample")

    def plan(self, given: Signal, nets: Nets) -> Shape:
        _need_numbers(given, self.KIND)
        if not any(isinstance(layer, Timestep) for layer in walk(nets.layers)):
            raise InvalidSpec(
                "objective.kind", "denoising needs a timestep layer: nothing else tells how much is noise"
            )
        _need_shape("", nets.through("", given), given.shape)
        return given.shape


def _path(net: str) -> str:
    return f"nets.{net}" if net else "layers"


def _need_numbers(given: Signal, kind: str) -> None:
    if given.dtype != "float32":
        raise InvalidSpec("input.dtype", f"is {given.dtype}, {kind} takes float32")


def _need_shape(net: str, out: Signal, shape: Shape) -> None:
    if out.shape != shape:
        raise InvalidSpec(_path(net), f"must give {shape}, gives {out.shape}")


Straight = Classification | Regression | NextToken | Reconstruction
"""Their loss is a function of what comes in, what comes out, and an answer: any function can be trained by them."""
Objective = Straight | Contrastive | Variational | Adversarial | Denoising
OBJECTIVES: dict[str, type[Objective]] = {
    cls.KIND: cls
    for cls in (
        *(Classification, Regression, NextToken, Reconstruction),
        *(Contrastive, Variational, Adversarial, Denoising),
    )
}
"""Every objective there is, by its name in a document. FROM_INPUT: what is asked for is the input itself. NETS: which
sets of nets it takes. PASSES: how often a sample goes through them in a step. METRIC: what it is judged by."""
