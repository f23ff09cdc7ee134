"""Find the logits among a model's outputs by their shape in the probe forward pass.

A tensor called ``logits``, or a lone tensor that the final linear layer made, holds the logits. So
does a lone tensor with one number for each example, as a regression gives. A row of at least two
numbers has the form of logits: it is taken only if a method asks for logits, and never if the
numbers are probabilities.
"""

from collections.abc import Mapping

from sonde.core.errors import InputError, near
from sonde.tap.model.probe import ROWS, Probe, TensorLayout

KNOWN = frozenset({"logits", ""})
OF_LIBRARY = frozenset({"causal", "classifier", "image_classifier"})


def logits_key(
    probe: Probe, task: str, named: str | None, asked: bool, n_classes: int = 0, column: str = ""
) -> str | None:
    """Return the key of the logits among the tensors that a model returns, or None.

    Parameters
    ----------
    probe : Probe
    task : str
        What the model is.
    named : str or None
        The output that the user named.
    asked : bool
        Whether a method needs logits: then the form alone is enough.
    n_classes : int, default=0
        Classes of the data's labels: the only row of as many numbers holds logits or probabilities.
    column : str, default=""
        Column of the labels: a row of numbers by this name holds the logits.

    Raises
    ------
    InputError
        If there is no such output, or several could be it and a method needs one.
    """
    floats = {k: leaf for k, leaf in probe.output.items() if leaf.dtype.is_floating_point}
    if named is not None:
        named = "" if named == "0" and "" in floats else named
        if named not in floats:
            raise InputError(
                f"logits: the model returns no output {named!r}, only "
                f"{_listed(floats)}.{near(named, floats)} Name one of these (--logits)."
            )
        return named
    if task in OF_LIBRARY:
        return next((k for k in ("logits", "") if k in probe.output), None)
    if task != "tensor":
        return None
    rows = {k: leaf for k, leaf in floats.items() if _is_row(leaf)}
    if column in rows and column:
        return column
    from_heads = [k for k in rows if k in probe.heads]
    several = {k: leaf for k, leaf in rows.items() if leaf.shape[1] > 1}
    fitting = [k for k, leaf in several.items() if leaf.shape[1] == n_classes]
    if "logits" not in rows and not asked and len(fitting) == 1:
        return fitting[0]  # a box comes from a linear layer too, beside scores that a softmax made
    if "logits" in rows or len(from_heads) == 1:
        return "logits" if "logits" in rows else from_heads[0]
    if len(floats) == 1 and {leaf.shape for leaf in floats.values()} <= {(ROWS[0],), (ROWS[0], 1)}:
        return next(iter(floats))
    if not asked or not several:
        return None
    return next((k for k in from_heads if k in several), None) or _alone(several, probe)


def other_outputs(probe: Probe, key: str | None) -> list[str]:
    """Return the further outputs that could be logits by their shape."""
    rows = (k for k, leaf in probe.output.items() if leaf.dtype.is_floating_point and _is_row(leaf))
    return [k for k in rows if k != key]


def _is_row(leaf: TensorLayout) -> bool:
    return len(leaf.shape) == 2 and leaf.shape[0] == ROWS[0] and leaf.shape[1] > 0


def _alone(rows: Mapping[str, TensorLayout], probe: Probe) -> str | None:
    free = [k for k in rows if k not in probe.probabilities]
    if len(free) == 1:
        return free[0]
    if not free:
        raise InputError(
            "logits: expected logits (the values before the softmax), got probabilities in "
            f"{_listed(rows)}. Return the logits too, and name them (--logits)."
        )
    raise InputError(
        "logits: expected one output with a row of numbers for each example, got "
        f"{_listed(rows)}. Name the output that holds the logits: logits=, --logits OUTPUT."
    )


def _listed(found: Mapping[str, TensorLayout]) -> str:
    return ", ".join(f"{key or '0'} {leaf.shape}" for key, leaf in found.items()) or "none"
