"""Check what is going to be uploaded: ``python tools/check_dist.py dist``.

One wheel and one source archive of at most 10 MB each, with what a user needs and nothing of a
run. The language model that ships takes 5.9 MB of each.
"""

import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 10_000_000
NEEDED = ("sonde/__init__.py", "sonde/py.typed", "sonde/report/assets/report.css")
UNWANTED = ("__pycache__", ".ipynb_checkpoints", "_build/", ".venv", ".run/")


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the files of a folder."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        return [f"expected one wheel and one .tar.gz in {folder}, got {sorted(folder.iterdir())}"]
    found = []
    with zipfile.ZipFile(wheels[0]) as wheel, tarfile.open(archives[0]) as archive:
        names = {wheels[0]: wheel.namelist(), archives[0]: archive.getnames()}
    found += [f"{wheels[0].name}: no {name}" for name in NEEDED if name not in names[wheels[0]]]
    for path, inside in names.items():
        size = path.stat().st_size
        print(f"{path.name}  {size / 1e6:.2f} MB, {len(inside):,} files")
        if size > MOST_BYTES:
            found.append(f"{path.name}: {size:,} bytes, expected at most {MOST_BYTES:,}")
        found += [f"{path.name}: {n}" for n in inside if any(part in n for part in UNWANTED)]
    return found


def main() -> int:
    """Print sizes and faults; 1 if there is one."""
    found = faults(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
    for fault in found:
        print(fault, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
