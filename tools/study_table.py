"""Print the table of docs/studies.md from what ``sonde study all -o FOLDER`` wrote.

python tools/study_table.py reports/studies
"""

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "| study | claim | figure | bar | would have seen | verdict |\n|---|---|---|---|---|---|"


def lines_of(study: dict[str, Any]) -> list[str]:
    """Return one line for each claim, and one for the null arm."""
    claims = [_line(study["study"], c, c["text"], c["verdict"]) for c in study["claims"]]
    null = study["null"]
    said = "as expected" if null["as_expected"] else "not as expected"
    return [*claims, _line(study["study"], null, f"nothing to find: {null['text']}", said)]


def _line(word: str, claim: dict[str, Any], text: str, verdict: str) -> str:
    figure = f"{claim['mean']:.3f} [{claim['low']:.3f}, {claim['high']:.3f}] {claim['figure']}"
    seen = f"{claim['detectable']:.3f}"
    return f"| `{word}` | {text} | {figure} | {claim['above']:g} | {seen} | {verdict} |"


def main(arguments: list[str]) -> int:
    """Print the table; 2 without a folder, 1 where a study ran at tiny size."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python tools/study_table.py FOLDER\n")
        return 2
    studies = [json.loads(f.read_text("utf-8")) for f in sorted(Path(arguments[0]).glob("*.json"))]
    print(HEAD)
    for study in studies:
        print("\n".join(lines_of(study)))
    return int(any(study["tiny"] for study in studies))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
