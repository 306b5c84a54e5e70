"""Where the repository is, and the command as a user starts it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
F2I = str(Path(sys.executable).with_name("f2i"))
"""The installed command."""
