"""Attackers by name: `scale:-1000`, `adaptive:median`, `equivocating-reducer`. What tables and command lines say.

`python -m simulations.attacks --list` prints all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from celluler.aggregation.rules import rule_named
from simulations.attacks.colluders import (
    Adaptive,
    InnerProduct,
    LittleIsEnough,
    Mimic,
    MinMax,
    MinSum,
    Orthogonal,
    Undo,
)
from simulations.attacks.lazy import Cached, Copied, FewerSteps, Replayed
from simulations.attacks.protocol.accusing import FalseAccuser, FalseAuditor
from simulations.attacks.protocol.attacker import Attacker, End, LyingTrainer
from simulations.attacks.protocol.disturbing import Late, WantFlood
from simulations.attacks.protocol.equivocating import (
    EquivocatingCommit,
    EquivocatingLeader,
    EquivocatingReducer,
    EquivocatingVoter,
)
from simulations.attacks.protocol.forging import ForgedCertificate, Nonsense, StatusLiar
from simulations.attacks.protocol.reducing import HidingReducer, WrongReducer
from simulations.attacks.protocol.withholding import (
    WithholdingReducer,
    WithholdingSender,
    WithholdingVoter,
    WithholdingWitness,
)
from simulations.attacks.updates import Delayed, Drift, LabelFlip, NanBytes, Noise, Scale, UpdateAttack


def _adaptive(rule: str) -> Adaptive:
    rule_named(rule)
    return Adaptive(rule)


def _undo(rule: str) -> Undo:
    rule_named(rule)
    return Undo(rule)


ATTACKS: Mapping[str, tuple[Callable[[str], UpdateAttack], str]] = {
    "scale": (lambda text: Scale(float(text)), "-1000"),
    "ipm": (lambda text: InnerProduct(float(text)), "0.6"),
    "alie": (lambda text: LittleIsEnough(float(text)), "0"),
    "label-flip": (lambda _: LabelFlip(), ""),
    "noise": (lambda text: Noise(float(text)), "1"),
    "nan-bytes": (lambda _: NanBytes(), ""),
    "delayed": (lambda text: Delayed(int(text)), "5"),
    "mimic": (lambda _: Mimic(), ""),
    "rop": (lambda text: Orthogonal(float(text)), "1"),
    "min-max": (MinMax, "std"),
    "min-sum": (MinSum, "std"),
    "drift": (lambda text: Drift(float(text)), "0.0009"),
    "adaptive": (_adaptive, "nk"),
    "undo": (_undo, "nk"),
    "fewer-steps": (lambda text: FewerSteps(float(text)), "0.5"),
    "cached": (lambda _: Cached(), ""),
    "replayed": (lambda _: Replayed(), ""),
    "copied": (lambda _: Copied(), ""),
}
"""What a member makes of its update. Name -> (from its argument to the attack, the argument by default)."""

EVERY = (
    "scale:-1000",
    "ipm:0.1",
    "ipm:0.6",
    "ipm:3",
    "alie",
    "label-flip",
    "noise",
    "nan-bytes",
    "delayed",
    "mimic",
    "rop",
    "min-max",
    "min-sum",
    "drift",
    "adaptive",
    "undo",
)
"""Those of the tables of accuracy."""

LAZY = ("fewer-steps", "cached", "replayed", "copied")
"""Those that do not do their steps: near to honest updates, and found by audits alone."""

ADAPTING = frozenset({"adaptive", "undo"})
"""Those whose argument is the rule that they meet."""


@dataclass(frozen=True, slots=True)
class Known:
    """A protocol attacker. ends: of these, one must come of it in a group that bears it and checks what it may.

    audits: only in one that audits.
    """

    make: Callable[[], Attacker]
    ends: tuple[End, ...]
    audits: bool = False


PROTOCOL: Mapping[str, Known] = {
    "equivocating-commit": Known(EquivocatingCommit, (End.PROVEN,)),
    "equivocating-leader": Known(EquivocatingLeader, (End.PROVEN,)),
    "equivocating-reducer": Known(EquivocatingReducer, (End.PROVEN,)),
    "equivocating-voter": Known(EquivocatingVoter, (End.PROVEN,)),
    "wrong-reducer": Known(WrongReducer, (End.PROVEN,)),
    "hiding-reducer": Known(HidingReducer, (End.PROVEN, End.SUSPENDED, End.BARRED, End.WEIGHTLESS)),
    "false-accuser": Known(FalseAccuser, (End.PROVEN,)),
    "false-auditor": Known(FalseAuditor, (End.PROVEN,), audits=True),
    "withholding-sender": Known(WithholdingSender, (End.SUSPENDED, End.WEIGHTLESS)),
    "withholding-reducer": Known(WithholdingReducer, (End.SUSPENDED, End.BARRED)),
    "withholding-voter": Known(WithholdingVoter, (End.BORNE,)),
    "withholding-witness": Known(WithholdingWitness, (End.SUSPENDED, End.BARRED, End.BORNE)),
    "late": Known(Late, (End.ABSENT,)),
    "want-flood": Known(WantFlood, (End.BORNE,)),
    "status-liar": Known(StatusLiar, (End.BORNE,)),
    "forged-certificate": Known(ForgedCertificate, (End.TOLD,)),
    "nonsense": Known(Nonsense, (End.TOLD,)),
}
"""What a member does in the protocol, its update being honest."""


def parse_attack(text: str) -> UpdateAttack:
    """A fresh attack on updates. Raises ValueError for one that nobody knows, or an argument it cannot take."""
    name, _, argument = text.partition(":")
    if name not in ATTACKS:
        raise ValueError(f"no attack is called {name!r}; there are {', '.join(ATTACKS)}")
    make, usual = ATTACKS[name]
    if argument and not usual:
        raise ValueError(f"{name} takes no argument, not {argument!r}")
    return make(argument or usual)


def parse_attacker(text: str) -> Attacker:
    """A fresh attacker of either kind. Raises ValueError as `parse_attack`."""
    if text in PROTOCOL:
        return PROTOCOL[text].make()
    if text.partition(":")[0] not in ATTACKS:
        raise ValueError(f"no attacker is called {text!r}; there are {', '.join((*ATTACKS, *PROTOCOL))}")
    return LyingTrainer(parse_attack(text))


def listed() -> str:
    """Every attacker, one a line: its name, with its usual argument, and the first sentence that is said of it."""
    lines: list[tuple[str, object, str]] = []
    for name, (make, usual) in ATTACKS.items():
        lines.append((f"{name}:{usual}" if usual else name, make(usual), ""))
    for name, known in PROTOCOL.items():
        ends = " or ".join(end.value for end in known.ends)
        lines.append((name, known.make(), f" [{ends}]"))
    wide = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{name:{wide}}  {_said(attacker)}{end}" for name, attacker, end in lines)


def _said(attacker: object) -> str:
    return (type(attacker).__doc__ or "").strip().splitlines()[0]
