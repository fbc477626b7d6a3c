"""Before anything imports torch: its threads must not spin while they wait, for every core is busy with something.

Two processes share the tests. What starts whole nodes is one lane, and begun first, so that no two swarms are ever at
work at the same time; the other process takes the rest, a file at a time.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("brief", max_examples=20)

SWARMS = "swarms"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_lane(item)))
    items.sort(key=lambda item: _lane(item) != SWARMS)


def _lane(item: pytest.Item) -> str:
    module = getattr(item, "module", None)
    return SWARMS if hasattr(module, "open_swarm") or item.path.stem == "test_demo" else item.path.stem
