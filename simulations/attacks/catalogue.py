"""Attacks by name: `scale:-1000`, `alie`, `adaptive:median`. What tables and command lines say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
}
"""Name -> (from its argument to the attack, the argument by default)."""

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
"""Those of the tables."""

ADAPTING = frozenset({"adaptive", "undo"})
"""Those whose argument is the rule that they meet."""


def parse_attack(text: str) -> UpdateAttack:
    """A fresh attack. Raises ValueError for one that nobody knows, or an argument it cannot take."""
    name, _, argument = text.partition(":")
    if name not in ATTACKS:
        raise ValueError(f"no attack is called {name!r}; there are {', '.join(ATTACKS)}")
    make, usual = ATTACKS[name]
    if argument and not usual:
        raise ValueError(f"{name} takes no argument, not {argument!r}")
    return make(argument or usual)
