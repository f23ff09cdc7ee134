"""Numbers of examples and groups that a bundle, or two bundles together, have seen."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sonde.core.hashing import base_hashes, draws
from sonde.core.plan import Part, Split
from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.engine.derived import innermost
from sonde.tap import LiveStream

Header = dict[str, Any]

KEPT_DRAWS = 256
LAST = np.uint64(2**64 - 1)


def counts_of(stream: Stream, split: Split | None) -> dict[str, Any]:
    """Return the counts of examples and groups for the header of a bundle."""
    members = Counter(stream.group_keys)
    counts: dict[str, Any] = {"n_examples": len(stream), "n_groups": len(members)}
    live = innermost(stream)
    inputs = live.inputs if isinstance(live, LiveStream) else None
    if isinstance(inputs, ItemInputs) and inputs.missing is not None:
        counts["missing"] = inputs.missing
    if split is not None:
        held = split.is_held(_draws_of(members, split.seed)).numpy()
        sizes = np.fromiter(members.values(), dtype=np.int64, count=len(members))
        counts["held"] = {"n_examples": int(sizes[held].sum()), "n_groups": int(held.sum())}
    return counts


def kept_draws(keys: Sequence[bytes], seed: int) -> np.ndarray:
    """Return the smallest ``split`` sampling keys of some groups, ascending, for a header."""
    return smallest_draws(_draws_of(Counter(keys), seed).numpy().view(np.uint64))


def smallest_draws(found: np.ndarray) -> np.ndarray:
    """Return the smallest of some sampling keys in ascending order, as many as a header stores."""
    return np.sort(found)[:KEPT_DRAWS]


def group_draws(stream: Stream) -> str:
    """Return the smallest ``split`` sampling keys of the groups (else examples), as hexadecimal.

    The draws tell how many groups two bundles share: exactly if both bundles keep all their draws,
    else as an estimate from the draws that lie below the last kept draw of both.
    """
    draws = _draws_of(Counter(stream.group_keys), stream.seed)
    return _draws_as_hex(draws.numpy().view(np.uint64))


def counts_in(header: Header, part: Part = "all") -> tuple[int, int]:
    """Return the numbers of examples and groups in a part of the data, or in all if unsplit."""
    data = header["data"]
    held = data.get("held")
    n_examples, n_groups = (int(data[name]) for name in ("n_examples", "n_groups"))
    if part == "all" or held is None:
        return n_examples, n_groups
    if part == "held":
        return int(held["n_examples"]), int(held["n_groups"])
    return n_examples - int(held["n_examples"]), n_groups - int(held["n_groups"])


def damaged_counts(header: Header) -> list[str]:
    """Return the fields of a header whose counts are missing or of a wrong type."""
    data, draws = header["data"], header.get("group_draws", "")
    held = data.get("held", data)
    wrong = [] if isinstance(data.get("n_groups"), int) else ["data.n_groups"]
    if not isinstance(held, dict) or any(
        not isinstance(held.get(name), int) for name in ("n_examples", "n_groups")
    ):
        wrong.append("data.held")
    if not isinstance(draws, str) or not re.fullmatch(r"([0-9a-f]{16})*", draws):
        wrong.append("group_draws")
    return wrong


def joined_counts(a: Header, b: Header, split: Split | None) -> tuple[Header, Header]:
    """Return the joined counts of two headers, and the sampling keys of their groups.

    A group that both have counts once if both headers keep draws.
    """
    own, its = a["data"], b["data"]
    first, second = _draws_in(a), _draws_in(b)
    sums: dict[str, Any] = _sums(own, its)
    if "missing" in own or "missing" in its:
        sums["missing"] = _missing_in_both(own.get("missing"), its.get("missing"))
    if "held" in own and "held" in its:
        sums["held"] = _sums(own["held"], its["held"])
    if first is None or second is None:
        return sums, {}
    cut = [d[-1] for d, one in ((first, own), (second, its)) if 0 < len(d) < one["n_groups"]]
    end = min(cut, default=LAST)
    sums["n_groups"] = _distinct(sums["n_groups"], first, second, end)
    if "held" in sums and split is not None:
        one, other = (d[_is_held(d, split)] for d in (first, second))
        sums["held"]["n_groups"] = _distinct(sums["held"]["n_groups"], one, other, end)
    return sums, {"group_draws": _draws_as_hex(np.union1d(first, second))}


def _sums(a: dict[str, Any], b: dict[str, Any]) -> dict[str, int]:
    return {name: a[name] + b[name] for name in ("n_examples", "n_groups")}


def _missing_in_both(a: Header | None, b: Header | None) -> Header | None:
    """Return the joined counts of missing values of two bundles, or None if a bundle has none."""
    if a is None or b is None:
        return None
    names = sorted({*a["columns"], *b["columns"]})
    columns = {n: a["columns"].get(n, 0) + b["columns"].get(n, 0) for n in names}
    return {"rows": a["rows"] + b["rows"], "columns": columns}


def _distinct(n: int, first: np.ndarray, second: np.ndarray, end: np.uint64) -> int:
    """Return the number of distinct groups among the ``n`` groups of two bundles.

    It is estimated from the draws up to ``end``: if both bundles hold a share ``s`` of the distinct
    groups, ``n`` is the number of distinct groups times ``1 + s``.
    """
    union, shared = np.union1d(first, second), np.intersect1d(first, second)
    n_once, twice = int((union <= end).sum()), int((shared <= end).sum())
    return max(len(union), round(n * n_once / (n_once + twice))) if n_once else n


def split_draws(stream: Stream) -> torch.Tensor:
    """Return the ``split`` sampling key of each group of a stream."""
    return _draws_of(Counter(stream.group_keys), stream.seed)


def groups_between(a: Header, b: Header, cuts: tuple[Split, Split]) -> int:
    """Return how many groups of both headers are held out in one and fitted in the other.

    Only the groups whose draws the headers keep are compared.
    """
    first, second = _draws_in(a), _draws_in(b)
    if first is None or second is None:
        return 0
    shared = np.intersect1d(first, second)
    own, its = (_is_held(shared, split) for split in cuts)
    return int((own != its).sum())


def _draws_of(groups: Counter[bytes], seed: int) -> torch.Tensor:
    base = base_hashes(list(groups), "split", seed)
    zero = np.zeros(len(base), dtype=np.uint64)
    return draws(base, zero, zero)


def _is_held(found: np.ndarray, split: Split) -> np.ndarray:
    return split.is_held(torch.as_tensor(found.view(np.int64))).numpy()


def _draws_as_hex(found: np.ndarray) -> str:
    return smallest_draws(found).astype("<u8").tobytes().hex()


def _draws_in(header: Header) -> np.ndarray | None:
    """Return a bundle's stored group sampling keys in ascending order, or None without any."""
    text = header.get("group_draws")
    if text is None:
        return None
    return np.frombuffer(bytes.fromhex(text), dtype="<u8").astype(np.uint64)
