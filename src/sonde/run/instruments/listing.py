"""List of ``sonde methods``, cached beside the bytecode so that no method is imported.

An import of all methods, and of torch before them, takes seconds. As Python does with bytecode, the
list is made from the classes once and kept in ``__pycache__`` until a file of sonde changes. If
that folder cannot be written, it is made each time.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from pathlib import Path

import sonde
from sonde.run.instruments.families import Listed


@cache
def listed() -> tuple[Listed, ...]:
    """Return every method that sonde exports, by family, methods to fit first, sorted by name."""
    root = Path(sonde.__file__).parent
    kept, stamp = root / "__pycache__" / "methods.json", _stamp(root)
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept_list = json.loads(kept.read_text(encoding="utf-8"))
        if kept_list["stamp"] == stamp:
            return tuple(Listed(**entry) for entry in kept_list["methods"])
    from sonde.files.durable import atomic_write
    from sonde.run.instruments.entering import entries

    fresh = entries()
    content = {"stamp": stamp, "methods": [asdict(entry) for entry in fresh]}
    with suppress(OSError):
        kept.parent.mkdir(exist_ok=True)
        atomic_write(kept, json.dumps(content).encode(), durable=False)
    return fresh


def _stamp(root: Path) -> str:
    """Return a hash of the size and modification time of every source file of sonde."""
    seen = blake2b(digest_size=16)
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(name for name in names if name.endswith(".py")):
            status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - 900 files, quickly
            seen.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return seen.hexdigest()
