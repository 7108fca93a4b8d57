"""What Python processes that we start need of this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def import_path() -> str:
    """PYTHONPATH by which a child finds the packages that this process finds."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
