"""Print how a scan names faults that no check was written for.

``PYTHONPATH=tests python -m scan.unnamed_table FOLDER [WORD ...]`` keeps trained nets in FOLDER.
"""

import sys
from collections import Counter
from pathlib import Path

from scan._unnamed import named
from scan._unnamed_nets import net_faults
from scan._unnamed_texts import text_faults


def main(folder: Path, words: list[str]) -> None:
    """Scan every fault whose model or name holds one of the words, all without words."""
    counts: Counter[str] = Counter()
    for fault in (*text_faults(folder), *net_faults(folder)):
        if not words or any(word in f"{fault.model} {fault.name}" for word in words):
            found = named(fault)
            print(found, flush=True)
            healthy = fault.name.startswith("(")
            counts[
                f"healthy: {'silent' if not found.words else 'raised'}" if healthy else found.how
            ] += 1
    print(", ".join(f"{n} {how}" for how, n in sorted(counts.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
