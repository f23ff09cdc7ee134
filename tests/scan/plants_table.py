"""Print the table of planted faults: ``python -m tools.plants [WORD ...]``."""

import sys

from scan._faults import HEADER, faults, outcome, summary

LEAST = 0.8


def main(words: list[str]) -> int:
    """Scan every fault whose name holds one of the words, all without words."""
    found = []
    print(HEADER)
    for fault in faults():
        if not words or any(word in fault.name for word in words):
            found.append(outcome(fault))
            print(found[-1], flush=True)
    print(summary(found))
    is_enough = sum(bool(o.found) for o in found) >= LEAST * len(found)
    return int(not is_enough or any(o.false for o in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
