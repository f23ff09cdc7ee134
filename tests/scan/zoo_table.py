"""Print the table of the healthy zoo: ``PYTHONPATH=tests python -m scan.zoo_table [NAME ...]``.

With ``--trained FOLDER``, that of trained nets of many kinds; their weights are kept in FOLDER.
"""

import argparse
import sys
from pathlib import Path

from scan._healthy import healthy
from scan._zoo import HEADER, examine, summary, zoo


def main(words: list[str]) -> int:
    """Scan every model whose name holds one of the words, all without words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--trained", type=Path, metavar="FOLDER")
    parser.add_argument("--sentences", action="store_true", help="print warnings and errors")
    told = parser.parse_args(words)
    rows = []
    print(HEADER)
    for animal in zoo() if told.trained is None else healthy(told.trained):
        if not told.names or any(word in animal.name for word in told.names):
            rows.append(examine(animal))
            print(rows[-1], flush=True)
            if told.sentences:
                for sentence in rows[-1].sentences:
                    print(f"    {sentence}", flush=True)
    print(summary(rows))
    return int(any(r.levels["error"] or r.failed for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
