"""The folder `eval/` must be imported as the package that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_bare_name_is_refused() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", "import eval"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import flexiclip_eval, not eval" in done.stderr.splitlines()[-1]
