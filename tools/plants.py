"""``python -m tools.plants [WORD ...]``: faults that a scan must find, and twins it must clear.

Without words all faults; else those whose name holds one of them.
"""

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"

if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    runpy.run_module("scan.plants_table", run_name="__main__")
