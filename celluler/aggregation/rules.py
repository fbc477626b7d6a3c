"""The rules a job may name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from celluler.aggregation.mean import mean
from celluler.aggregation.median import median
from celluler.aggregation.nk import nk
from celluler.aggregation.rule import Rule
from celluler.errors import LocalError

RULES: Mapping[str, Rule] = MappingProxyType({"nk": nk, "median": median, "mean": mean})


def rule_named(name: str) -> Rule:
    """Raises LocalError for a name nobody knows."""
    if name not in RULES:
        raise LocalError(f"no aggregation rule is called {name!r}; there are {', '.join(RULES)}")
    return RULES[name]
