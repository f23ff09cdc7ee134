"""Print the table of the healthy zoo: ``PYTHONPATH=tests python -m scan.zoo_table [NAME ...]``."""

import sys

from scan._zoo import HEADER, examine, summary, zoo


def main(words: list[str]) -> int:
    """Scan every model whose name holds one of the words, all without words."""
    rows = []
    print(HEADER)
    for animal in zoo():
        if not words or any(word in animal.name for word in words):
            rows.append(examine(animal))
            print(rows[-1], flush=True)
    print(summary(rows))
    return int(any(r.levels["error"] or r.failed for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
