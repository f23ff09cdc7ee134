"""A file of a study's finished seeds, from which an interrupted or a longer run goes on."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("sonde", "sonde_studies")
DISTRIBUTION = "sonde-studies"


class KeptSeeds:
    """Figures of finished seeds in a file, which is written anew after each of them.

    They are read again only by the same code: the sources of both packages, the versions of Python
    and of what the studies are built on, and the processor, whose kernels round differently.

    Parameters
    ----------
    path : path
        ``NAME.seeds.json``; its folder is there.
    tiny : bool
        Whether the seeds are of the size that only shows that it runs.
    """

    def __init__(self, path: Path, tiny: bool) -> None:
        self._path = path
        self._code = {"tiny": tiny, "code": code_hash()}
        self._seeds = self._read()

    def get(self, seed: int) -> tuple[dict[str, float], float] | None:
        """Return the figures and the seconds of a seed, or None if it is not there."""
        found = self._seeds.get(str(seed))
        return None if found is None else (found["figures"], found["seconds"])

    def keep(self, seed: int, figures: Mapping[str, float], seconds: float) -> None:
        """Write the figures of a seed, and the seconds that it took."""
        self._seeds[str(seed)] = {"seconds": seconds, "figures": dict(figures)}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._code | {"seeds": self._seeds}), encoding="utf-8")
        part.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            said = json.loads(self._path.read_bytes())
            return dict(said["seeds"]) if self._code.items() <= said.items() else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # no file, or not one of ours: every seed is run


@cache
def code_hash() -> str:
    """Return a hash of all that decides a study's figures, the seed left out."""
    said = hashlib.blake2b(digest_size=16)
    names = [
        match[0] for line in requires(DISTRIBUTION) or () if (match := re.match(r"[\w.-]+", line))
    ]
    where = [platform.python_version(), platform.machine(), _processor()]
    said.update(json.dumps([*where, *((name, version(name)) for name in names)]).encode())
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None, "both packages are imported"
        assert spec.origin is not None, "both packages have an __init__"
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            text = path.read_bytes()
            said.update(f"{package}/{path.relative_to(root).as_posix()} {len(text)}\n".encode())
            said.update(text)
    return said.hexdigest()


def _processor() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability()
