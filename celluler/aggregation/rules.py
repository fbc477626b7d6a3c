"""The rules a job may name. All are exact: a reducer's work is checked by comparing bytes, whatever the rule."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from celluler.aggregation.clipping import clipping, nnm_cc
from celluler.aggregation.geometric_median import geometric_median
from celluler.aggregation.krum import krum, multi_krum
from celluler.aggregation.mean import mean
from celluler.aggregation.median import median
from celluler.aggregation.nk import nk
from celluler.aggregation.rule import Rule
from celluler.aggregation.trimmed_mean import trimmed_mean
from celluler.aggregation.winsorising import winsorised_nk
from celluler.errors import LocalError

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "nk": nk,
        "winsorised-nk": winsorised_nk,
        "nnm-cc": nnm_cc,
        "multi-krum": multi_krum,
        "krum": krum,
        "geometric-median": geometric_median,
        "median": median,
        "trimmed-mean": trimmed_mean,
        "clipping": clipping,
        "mean": mean,
    }
)


def rule_named(name: str) -> Rule:
    """Raises LocalError for a name nobody knows."""
    if name not in RULES:
        raise LocalError(f"no aggregation rule is called {name!r}; there are {', '.join(RULES)}")
    return RULES[name]
