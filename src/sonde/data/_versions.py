"""What differs between the versions of transformers on which sonde runs (5.0 to 5.24)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any


def has_pillow_backend() -> bool:
    """Return whether image processors run on Pillow by choice and accept grey images (5.4)."""
    return find_spec("transformers.image_processing_backends") is not None


def pillow_options() -> dict[str, Any]:
    """Return the option of ``from_pretrained`` that makes a processor use Pillow."""
    return {"backend": "pil"} if has_pillow_backend() else {"use_fast": False}


def used_rules(rules: Sequence[Any]) -> list[Any]:
    """Return the conversion rules that matched a checkpoint; all of them before 5.6.

    Versions before 5.6 do not record it, and revert all rules when they save a model.

    Parameters
    ----------
    rules : sequence
        Weight transforms of transformers after the names of a checkpoint were mapped.
    """
    return [rule for rule in rules if not hasattr(rule, "was_used") or rule.was_used()]


def converted(result: Any) -> Any:
    """Return the tensors that a conversion rule made; before 5.4 errors came beside them.

    Parameters
    ----------
    result : mapping or tuple
        What ``WeightConverter.convert`` returned.
    """
    return result[0] if isinstance(result, tuple) else result
