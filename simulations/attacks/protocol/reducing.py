"""Reducers that do not keep to the rule, and tell everybody the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from celluler.aggregation.rule import Reduced as RuleResult
from celluler_protocols.averaging_exchange import Exchange, Sealed
from simulations.attacks.protocol.attacker import Attacker


class ReducesBackwards(Exchange):
    def seal(self, part: int, used: tuple[int, ...], result: RuleResult) -> Sealed:
        if part in self.mine:  # -32768 is never written, so that every mantissa has its opposite
            result = replace(result, mantissas=np.negative(result.mantissas))
        return super().seal(part, used, result)


class WrongReducer(Attacker):
    """Reduces its parts to the opposite of what the rule gives, serves whoever checks, and signs it."""

    hands = ReducesBackwards


class HidesAndReducesBackwards(ReducesBackwards):
    def input_packed(self, part: int, member: int) -> Any:
        return None


class HidingReducer(Attacker):
    """Reduces backwards, and gives nobody the inputs that would show it: others must ask the senders."""

    hands = HidesAndReducesBackwards
