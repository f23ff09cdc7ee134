"""Local copies of objects, for readers that need a file of the system: arrays and folders.

A copy is kept under the user's cache by address, version and size, so a changed object is copied
anew. Tables and rows are read where they are instead.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from sonde.core.errors import InputError, StoreError
from sonde.core.wording import gib
from sonde.files.durable import TEMPORARY, atomic_file
from sonde.files.places import Place

PARALLEL = 8


def local_copy(place: Place) -> Path:
    """Return a local copy of an object, or of all objects below a name.

    Raises
    ------
    InputError
        If there is no such object.
    StoreError
        If the disk has too little room, or the service does not answer.
    """
    if place.is_file():
        objects = {"": place}
    else:
        objects = {_below(place, path): path for path in place.rglob("*")}
    if not objects:
        raise InputError(f"data: there is no object {place}, and none below it.")
    versions = [f"{name} {path.stat().st_size} {_version(path)}" for name, path in objects.items()]
    key = hashlib.blake2b("\n".join([str(place), *sorted(versions)]).encode(), digest_size=16)
    home = _cache() / key.hexdigest()
    target = home / place.name
    if target.exists():
        return target
    _require_room(place, sum(path.stat().st_size for path in objects.values()))
    making = home.with_name(f"{home.name}{TEMPORARY}{os.getpid()}")
    with ThreadPoolExecutor(PARALLEL) as pool:
        root = making / place.name
        list(pool.map(lambda name: _copied(objects[name], root / name if name else root), objects))
    try:
        making.replace(home)
    except OSError:  # another process was first
        shutil.rmtree(making, ignore_errors=True)
    return target


def _below(place: Place, path: Path) -> str:
    name = PurePosixPath(str(path)[len(str(place)) + 1 :])
    if ".." in name.parts or name.is_absolute():
        raise InputError(f"{path}: expected a name below {place}.")
    return str(name)


def _version(path: Path) -> str:
    return path.version() if isinstance(path, Place) else ""


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "sonde" / "places"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _require_room(place: Place, size: int) -> None:
    free = shutil.disk_usage(_cache()).free
    if size > 0.9 * free:
        raise StoreError(
            f"{place}: its local copy needs {gib(size)}, but {_cache()} has {gib(free)} left. Set "
            "XDG_CACHE_HOME to a larger disk, or store the data as a Parquet or JSONL file."
        )


def _copied(place: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with place.open("rb") as source, atomic_file(target, durable=False) as file:
        shutil.copyfileobj(source, file, 2**23)
