"""A deployment: a name of this node's own behind which versions of models stand, each with its share of the sessions.

`deploy:NAME` is what it is asked by: no model is called so, since a name of a model has a slash and a CID no colon. The
first arm is `stable` and gets what the others leave. Which arm a session gets is a function of its key, so that it
stays with one; where shares change, sessions move only to arms that have gained (weighted rendezvous hashing: Thaler
and Ravishankar 1998; weights by Schindelhauer and Schomaker 2005).

Pure: times are Unix seconds and arguments. Knows neither peers nor how a model is run; `deployments_file` writes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from celluler.content.digest import parse_cid
from celluler.errors import InvalidSpec, LocalError, NotFound
from celluler.models.names import MAX_REFERENCE_BYTES, check_printable, check_word
from celluler.quantities import parse_duration

PREFIX = "deploy:"
STABLE, CANARY = "stable", "canary"
WHOLE = 10_000
"""All sessions: shares are in hundredths of a per cent."""
MAX_ARMS = 8
MAX_REGIONS = 16
MAX_REPLICAS = 64
MAX_IN_FLIGHT = 4096
MAX_KEEP_WARM_S = 7 * 86_400
MAX_SESSION_BYTES = 256


@dataclass(frozen=True, slots=True)
class Arm:
    """One version. name: by which it is promoted. model: as it was named; cid: of the manifest that was meant. share:
    of the sessions, in 1/`WHOLE`; that of `stable` is what is left."""

    name: str
    model: str
    cid: str
    share: int = WHOLE

    def __post_init__(self) -> None:
        check_word(self.name, "arm")
        check_printable(self.model, "model")
        if not 1 <= len(self.model.encode()) <= MAX_REFERENCE_BYTES:
            raise InvalidSpec("model", f"must be of 1…{MAX_REFERENCE_BYTES} bytes")
        parse_cid(self.cid)
        if not 1 <= self.share <= WHOLE:
            raise InvalidSpec("share", f"{percent(self.share)} is not above 0% and at most 100%")


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas each version has. least: 0 lets it go when nobody asks. in_flight: requests under way that one
    replica is to have; more make more replicas. latency_ms: of the slowest twentieth, above which there are more, too;
    0 for none. keep_warm_s: how long replicas beyond `least` stay after they were last needed."""

    least: int = 1
    most: int = 1
    in_flight: int = 8
    latency_ms: int = 0
    keep_warm_s: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or not 1 <= self.most <= MAX_REPLICAS:
            raise InvalidSpec("replicas", f"{self.least}…{self.most} is not 0 ≤ min ≤ max ≤ {MAX_REPLICAS}, max ≥ 1")
        if not 1 <= self.in_flight <= MAX_IN_FLIGHT:
            raise InvalidSpec("in_flight", f"must be 1…{MAX_IN_FLIGHT}")
        if not 0 <= self.latency_ms <= 600_000:
            raise InvalidSpec("latency_ms", "must be 0…600000")
        if not 0 <= self.keep_warm_s <= MAX_KEEP_WARM_S:
            raise InvalidSpec("keep_warm_s", f"must be 0…{MAX_KEEP_WARM_S}")


@dataclass(frozen=True, slots=True)
class Deployment:
    """arms: `stable` first. incoming: takes the place of all of them once it is ready (blue-green). previous: what
    `stable` was before. regions: where replicas may be, empty for anywhere. compare: share of predictions that are
    asked of a second arm, too. number: of changes, from 1."""

    name: str
    arms: tuple[Arm, ...]
    scale: Scale = Scale()
    regions: tuple[str, ...] = ()
    compare: int = 0
    incoming: Arm | None = None
    previous: Arm | None = None
    number: int = 1
    created_s: int = 0
    changed_s: int = 0

    def __post_init__(self) -> None:
        check_word(self.name, "name")
        if not 1 <= len(self.arms) <= MAX_ARMS:
            raise InvalidSpec("arms", f"has {len(self.arms)}, must have 1…{MAX_ARMS}")
        if self.arms[0].name != STABLE:
            raise InvalidSpec("arms[0].name", f"must be {STABLE}")
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise InvalidSpec("arms", "has two of one name")
        if len({arm.cid for arm in self.arms}) < len(self.arms):
            raise InvalidSpec("arms", "has one version twice")
        if sum(arm.share for arm in self.arms) != WHOLE:
            raise InvalidSpec("arms", "the shares do not come to 100%")
        if len(self.regions) > MAX_REGIONS:
            raise InvalidSpec("regions", f"has {len(self.regions)}, at most {MAX_REGIONS}")
        for place, region in enumerate(self.regions):
            check_word(region, f"regions[{place}]")
        if not 0 <= self.compare <= WHOLE:
            raise InvalidSpec("compare", f"{percent(self.compare)} is not 0%…100%")

    @property
    def stable(self) -> Arm:
        return self.arms[0]

    @property
    def reference(self) -> str:
        return PREFIX + self.name

    def arm(self, name: str) -> Arm:
        """Raises NotFound."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise NotFound(f"arm {name} of {self.reference}", hint=f"celluler deploy show {self.name}")


# --- asking ----------------------------------------------------------------------------------------------------------


def deployment_named(ref: str) -> str | None:
    """The name of the deployment that `ref` means; None when it means a model. Raises InvalidSpec for no name."""
    if not ref.startswith(PREFIX):
        return None
    name = ref.removeprefix(PREFIX)
    check_word(name, "model")
    return name


def arm_of(deployment: Deployment, session: str) -> Arm:
    """Of equal weights every arm is as likely; a session that has one keeps it until another gains on it."""
    if len(deployment.arms) == 1:
        return deployment.arms[0]
    return min(deployment.arms, key=lambda arm: _score(deployment.name, arm.cid, session) / arm.share)


def _score(name: str, cid: str, session: str) -> float:
    """Exponentially distributed with mean 1: the least of several, each divided by its weight, falls by weight."""
    key = f"{name}\0{cid}\0".encode() + session.encode("utf-8", "replace")
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return -math.log((number + 1) / (1 << 64))


# --- changing --------------------------------------------------------------------------------------------------------


def with_trials(stable: Arm, trials: tuple[Arm, ...]) -> tuple[Arm, ...]:
    """The arms: `stable` gets what the trials leave. Raises InvalidSpec when they leave nothing."""
    left = WHOLE - sum(arm.share for arm in trials)
    if left < 1:
        raise InvalidSpec("share", f"the other arms take {percent(WHOLE - left)}, and {STABLE} is left nothing")
    return (replace(stable, name=STABLE, share=left), *trials)


def try_out(old: Deployment, trial: Arm, now: float) -> Deployment:
    """Give an arm its share, in place of the one that has its name. Raises InvalidSpec."""
    _settled(old)
    others = tuple(arm for arm in old.arms[1:] if arm.name != trial.name)
    if trial.name == STABLE:
        raise InvalidSpec("arm", f"{STABLE} is the one that the others are tried out beside")
    return _changed(old, now, arms=with_trials(old.stable, (*others, trial)))


def share_out(old: Deployment, shares: Mapping[str, int], now: float) -> Deployment:
    """Change the shares of arms that there are. Raises InvalidSpec, NotFound."""
    _settled(old)
    for name in shares:
        if old.arm(name).name == STABLE:
            raise InvalidSpec("share", f"{STABLE} gets what the others leave")
    trials = tuple(replace(arm, share=shares.get(arm.name, arm.share)) for arm in old.arms[1:])
    return _changed(old, now, arms=with_trials(old.stable, trials))


def switch(old: Deployment, model: str, cid: str, now: float) -> Deployment:
    """Every session gets this version from now on."""
    _settled(old)
    return _switched(old, Arm(STABLE, model, cid), now)


def bring_in(old: Deployment, model: str, cid: str, now: float) -> Deployment:
    """Get this version ready; `arrive` switches to it. Raises InvalidSpec when sessions have it already."""
    _settled(old)
    if cid in {arm.cid for arm in old.arms}:
        raise InvalidSpec("model", f"{model} is there already")
    return _changed(old, now, incoming=Arm(STABLE, model, cid))


def arrive(old: Deployment, now: float) -> Deployment:
    """What was brought in is ready."""
    assert old.incoming is not None
    return _switched(old, old.incoming, now)


def promote(old: Deployment, name: str, now: float) -> Deployment:
    """Every session gets this arm from now on. name: empty for the only one that is tried out.

    Raises LocalError when there is none, or are several; NotFound.
    """
    _settled(old)
    if not name:
        if len(old.arms) != 2:
            told = "nothing is tried out" if len(old.arms) == 1 else "several arms are tried out: say which"
            raise LocalError(told, hint=f"celluler deploy show {old.name}")
        name = old.arms[1].name
    arm = old.arm(name)
    if arm.name == STABLE:
        raise LocalError(f"{STABLE} is what it is already", hint=f"celluler deploy rollback {old.name}")
    return _switched(old, arm, now)


def roll_back(old: Deployment, now: float) -> Deployment:
    """Take back what is under way: what was brought in, or what is tried out; else what `stable` was before.

    Raises LocalError when there is nothing to go back to.
    """
    if old.incoming is not None:
        return _changed(old, now, incoming=None)
    if len(old.arms) > 1:
        return _changed(old, now, arms=with_trials(old.stable, ()))
    if old.previous is None:
        raise LocalError(f"{old.reference} has had no other version")
    return _switched(old, old.previous, now)


def resize(old: Deployment, now: float, *, scale: Scale, regions: tuple[str, ...], compare: int) -> Deployment:
    return _changed(old, now, scale=scale, regions=regions, compare=compare)


def _settled(old: Deployment) -> None:
    """Raises LocalError while something is brought in."""
    if old.incoming is not None:
        raise LocalError(
            f"{old.incoming.model} is being brought in", hint=f"celluler deploy rollback {old.name} takes it back"
        )


def _switched(old: Deployment, arm: Arm, now: float) -> Deployment:
    stable = replace(arm, name=STABLE, share=WHOLE)
    previous = old.previous if stable.cid == old.stable.cid else replace(old.stable, share=WHOLE)
    return _changed(old, now, arms=(stable,), incoming=None, previous=previous)


def _changed(old: Deployment, now: float, **changes: object) -> Deployment:
    return replace(old, number=old.number + 1, changed_s=int(now), **changes)  # type: ignore[arg-type]


# --- what a person writes --------------------------------------------------------------------------------------------


def read_share(text: str, path: str = "share") -> int:
    """`10%`, `0.5%` in 1/`WHOLE`. Raises InvalidSpec."""
    number, sign, rest = text.strip().partition("%")
    try:
        share = round(float(number) * WHOLE / 100)
    except (ValueError, OverflowError):
        share = -1
    if not sign or rest or not 0 <= share <= WHOLE:
        raise InvalidSpec(path, f"{text[:32]!r} is not a share such as 10%")
    return share


def percent(share: int) -> str:
    return f"{share * 100 / WHOLE:g}%"


def read_keep_warm(text: str) -> int:
    """`10m` in seconds; `0` for none. Raises InvalidSpec."""
    if text.strip() == "0":
        return 0
    try:
        return int(parse_duration(text))
    except ValueError as error:
        raise InvalidSpec("keep_warm", str(error)) from None
