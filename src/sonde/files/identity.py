"""Compare the identities of two streams: the model, and the rows that they read.

An unknown fact is no difference, nor is the way rows are cut into batches.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from sonde.core.state import canonical_json
from sonde.files.part_facts import certain_differences, describe_part, difference_of_parts

CODE, PARTS = "code", "parts"
MODEL_FACTS = ("model", "structure", "config", "dtype", "attn", PARTS, "head")
UNKNOWN_TO_SOME = ("attn", "head", "structure", PARTS)
HASHED = {
    "model": "weights differ",
    "config": "configuration differs",
    "structure": "module classes, their settings or unsaved buffers differ",
    "head": "head differs",
    "code": "code differs in a forward method, or in a function that it calls",
}
HOW_READ = ("batch_size", "skip_bad", "even")
NESTED = ("prompts", "appended")


def agree(name: str, a: Any, b: Any) -> bool:
    """Return whether two values of a fact are equal, or one of them is unknown.

    States and stores of earlier versions do not know the attention kernel or the structure. The
    head is named only if rows came without a model; a model's weights include the head.

    Examples
    --------
    >>> agree("attn", "sdpa", None), agree("attn", "sdpa", "eager"), agree("dtype", "int8", None)
    (True, False, False)
    """
    if name == CODE:
        return same_code(a, b)
    if name == PARTS and a is not None and b is not None:
        return not certain_differences(a, b)
    return a == b or (name in UNKNOWN_TO_SOME and None in (a, b))


def same_code(a: str | None, b: str | None) -> bool:
    """Return whether two hashes of forward code are equal, or cannot be compared.

    Each version of Python compiles differently, so a hash begins with the version.
    """
    if a is None or b is None or a.partition(":")[0] != b.partition(":")[0]:
        return True
    return a == b


def difference(name: str, here: Any, fitted: Any) -> str:
    """Return a text about a fact that differs from the fit's.

    Examples
    --------
    >>> difference("model", "ce72ca0d66", "726eeafada")
    'its weights differ (ce72ca0d here, 726eeafa fitted)'
    >>> difference("dtype", "float32", "bfloat16")
    "dtype is 'float32' here and was 'bfloat16' in the fit"
    """
    if name == PARTS and here and fitted:
        return describe_part(certain_differences(here, fitted)[0], here, fitted)
    what = HASHED.get(name)
    if what is None or not isinstance(here, str) or not isinstance(fitted, str):
        return f"{name} is {here!r} here and was {fitted!r} in the fit"
    return f"its {what} ({here[:8]} here, {fitted[:8]} fitted)"


def first_difference(
    here: Mapping[str, Any], fitted: Mapping[str, Any], names: Iterable[str]
) -> str | None:
    """Return the first named fact that differs between two identities; parts come first.

    Parts say what differs by name, where other facts are hashes.
    """
    order = sorted(names, key=lambda name: name != PARTS)
    return next((n for n in order if not agree(n, here.get(n), fitted.get(n))), None)


def describe_difference(
    here: Mapping[str, Any], fitted: Mapping[str, Any], names: Iterable[str]
) -> str | None:
    """Return the first difference in words, None if there is none.

    If only the hash of the structure differs, the first part that differs explains it.
    """
    name = first_difference(here, fitted, names)
    if name == "structure" and here.get(PARTS) and fitted.get(PARTS):
        for part in difference_of_parts(here[PARTS], fitted[PARTS]):
            return describe_part(part, here[PARTS], fitted[PARTS])
    return None if name is None else difference(name, here.get(name), fitted.get(name))


def hashed(said: Any) -> str:
    """Return the hash of a JSON value, such as the identity of a stream."""
    return hashlib.blake2b(canonical_json(said).encode(), digest_size=16).hexdigest()


def data_hash(identity: dict[str, Any]) -> str:
    """Return the hash of the part of a stream's identity that describes its rows."""
    return hashed(which_rows(identity.get("data", identity)))


def which_rows(said: Any) -> Any:
    """Return the part of a stream's identity that describes its rows.

    The cut into batches, and whether items that cannot be read are passed over, are left out.

    Examples
    --------
    >>> which_rows({"prompts": {"fingerprint": "3f", "batch_size": 8}})
    {'prompts': {'fingerprint': '3f'}}
    """
    if isinstance(said, list):
        return [which_rows(part) for part in cast("list[Any]", said)]
    if not isinstance(said, dict):
        return said
    return {
        name: which_rows(value) if name in NESTED else value
        for name, value in cast("dict[str, Any]", said).items()
        if name not in HOW_READ
    }
