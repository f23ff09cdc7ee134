"""Print the table of docs/studies.md from what ``sonde study NAME -o FOLDER`` wrote.

python tools/study_table.py reports/studies [docs/studies.md]

With a page, the rows of the studies in the folder are put there in place of theirs; others stay.
A row of more or fewer than ten seeds ends in their number.
"""

import json
import sys
from pathlib import Path
from typing import Any

USUAL_SEEDS, NULL = 10, "nothing to find: "
HEAD = "| study | claim | figure | bar | would have seen | verdict |\n|---|---|---|---|---|---|"


def lines_of(study: dict[str, Any]) -> list[str]:
    """Return a line for each claim, and a line for the null arm."""
    word, n = study["study"], len(study["seeds"])
    seeds = "" if n == USUAL_SEEDS else f", {n} seeds"
    claims = [_line(word, c, c["text"], c["verdict"] + seeds) for c in study["claims"]]
    null = study["null"]
    return [*claims, _line(word, null, f"{NULL}{null['text']}", null["verdict"] + seeds)]


def _line(word: str, claim: dict[str, Any], text: str, verdict: str) -> str:
    figure = f"{claim['mean']:.3f} [{claim['low']:.3f}, {claim['high']:.3f}] {claim['figure']}"
    seen = f"{claim['detectable']:.3f}"
    return f"| `{word}` | {text} | {figure} | {claim['above']:g} | {seen} | {verdict} |"


def replaced(page: str, studies: list[dict[str, Any]]) -> str:
    """Return a page whose rows of these studies are theirs, in place of what it had; others stay.

    Parameters
    ----------
    page : str
        With the table's head.
    """
    before, head, rest = page.partition(HEAD + "\n")
    body, gap, after = rest.partition("\n\n")
    rows: dict[str, list[str]] = {}
    for line in body.splitlines():
        rows.setdefault(line.split("`")[1], []).append(line)
    rows |= {study["study"]: lines_of(study) for study in studies}
    table = (line for word in sorted(rows, key="{}.json".format) for line in rows[word])
    return "".join([before, head, "\n".join(table), gap, after])


def main(arguments: list[str]) -> int:
    """Print the table, or put it into a page; 2 without a folder, 1 for a study at tiny size."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python tools/study_table.py FOLDER [PAGE]\n")
        return 2
    studies = [json.loads(f.read_text("utf-8")) for f in sorted(Path(arguments[0]).glob("*.json"))]
    if any(study["tiny"] for study in studies):
        sys.stderr.write("error: expected studies at full size, got one that ran with --tiny\n")
        return 1
    if arguments[1:]:
        page = Path(arguments[1])
        page.write_text(replaced(page.read_text("utf-8"), studies), "utf-8")
    else:
        print(HEAD)
        for study in studies:
            print("\n".join(lines_of(study)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
