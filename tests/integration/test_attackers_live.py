"""Each protocol attacker among real nodes: nobody honest is harmed, and it ends as the catalogue says."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.attacks.catalogue import PROTOCOL
from simulations.attacks.live import play
from simulations.digits import write_digits


@pytest.mark.large  # half a minute each
@pytest.mark.parametrize("attack", PROTOCOL)
def test_honest_nodes_finish_alike_beside_it(attack: str, tmp_path: Path) -> None:
    came = play(attack, write_digits(tmp_path))
    assert came.sound, came
    assert came.accuracy >= 0.9
