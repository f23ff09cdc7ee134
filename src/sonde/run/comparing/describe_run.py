"""Describe a run directory from its plan and its file names alone."""

import json
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StoreError, reason_of
from sonde.files.durable import TEMPORARY
from sonde.files.lock import holder_of
from sonde.files.places import to_path
from sonde.run.comparing.verify_run import is_run_directory, passes_in
from sonde.run.comparing.verify_state import refuse_later
from sonde.run.passes.ledger import PLAN, STATES
from sonde.run.passes.units import Range

MAX_PLAN_BYTES = 64 * 2**20


def describe_run(directory: str | Path) -> dict[str, Any]:
    """Return a description of a run directory as JSON values.

    Raises
    ------
    InputError
        If the folder is not a run directory.
    StoreError
        If its plan cannot be read.
    """
    directory = to_path(directory)
    if not is_run_directory(directory):
        raise InputError(f"info: {directory} is not a run directory.")
    holder = holder_of(directory)
    return {
        "kind": "run directory",
        "passes": [_pass(d) for d in (directory, *passes_in(directory)) if (d / PLAN).is_file()],
        "in_use_by": None if holder is None else f"process {holder.pid} on {holder.host}",
        "size_bytes": sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()),
    }


def _pass(directory: Path) -> dict[str, Any]:
    path = directory / PLAN
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise ValueError("the file is too large")
        plan = json.loads(path.read_text(encoding="ascii"))
        refuse_later(path, plan["version"])
        stream = plan["stream"]
        facts = {name: int(plan[name]) for name in ("n_examples", "n_units", "stage")}
        facts |= {"n_states": len(plan["requests"])}
    except StoreError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(
            f"info: the plan {path} cannot be read: {reason_of(error)}. See sonde verify."
        ) from error
    folder = directory / STATES
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    ranges = [r for r in map(Range.named, names) if r is not None]
    return {
        "name": directory.name,
        **facts,
        "n_done": _covered(ranges),
        "n_files": len(ranges),
        "n_left_over": sum(TEMPORARY in name for name in names),
        "model": stream.get("model") if isinstance(stream, dict) else None,
    }


def _covered(ranges: list[Range]) -> int:
    """Return how many units the files cover, each counted once."""
    done, end = 0, 0
    for place in sorted(ranges, key=lambda r: (r.start, -r.stop)):
        done += max(0, place.stop - max(end, place.start))
        end = max(end, place.stop)
    return done
