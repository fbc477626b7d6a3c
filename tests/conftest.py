"""Before anything imports torch: its threads must not spin while they wait, for every core is busy with something."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
