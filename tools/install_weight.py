"""Print what sonde and each extra weigh on disk: ``python tools/install_weight.py``.

The sizes are those of the files that pip recorded in this environment, so everything has to be
installed here. What the default install needs is not counted again for an extra.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from sonde.core.wording import DISTRIBUTION

MIB = 2**20
FEWEST_MIB = 1


def needed(name: str, extra: str = "") -> dict[str, int]:
    """Return the bytes of a distribution and of all that it needs, by name."""
    found: dict[str, int] = {}
    seen, waiting = {(name, extra)}, [(name, extra)]
    while waiting:
        name, extra = waiting.pop()
        held = distribution(name)
        found[held.metadata["Name"].lower()] = size_bytes(name)
        for line in held.requires or ():
            asked = Requirement(line)
            if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
                continue
            new = {(asked.name, more) for more in ("", *asked.extras)} - seen
            seen |= new
            waiting += new
    return found


def size_bytes(name: str) -> int:
    """Return the bytes of the files that pip recorded for a distribution."""
    held = distribution(name)
    paths = [Path(str(held.locate_file(file))) for file in held.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def table() -> str:
    """Return the sizes as a table in Markdown, the largest packages named."""
    base = needed(DISTRIBUTION)
    lines = ["| install | MiB | largest parts (MiB) |", "|---|---|---|", _line("default", base)]
    for extra in distribution(DISTRIBUTION).metadata.get_all("Provides-Extra") or ():
        parts = needed(DISTRIBUTION, extra)
        lines.append(_line(f"`[{extra}]` adds", {k: v for k, v in parts.items() if k not in base}))
    return "\n".join(lines)


def _line(name: str, parts: dict[str, int]) -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])[:8]
    shown = ", ".join(f"{k} {v / MIB:.0f}" for k, v in largest if v >= FEWEST_MIB * MIB)
    return f"| {name} | {sum(parts.values()) / MIB:.0f} | {shown} |"


def main() -> int:
    """Print the table."""
    try:
        print(table())
    except PackageNotFoundError as error:
        print(f"{error}. Run make install first.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
