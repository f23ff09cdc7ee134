"""What differs between two models besides their states: weights, tokenizer, code of modules."""

import hashlib
import inspect
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.core.wording import plural
from sonde.weights import DenseWeight, dense_weights
from sonde.weights._kinds import kind_of

SHOWN: Final = 3


@dataclass(frozen=True)
class ModelDifference:
    """Names of what differs between two models.

    Parameters
    ----------
    weights : tuple of str
        Parameters and buffers whose bits differ, or that only one model has.
    n_weights : int
        Parameters and buffers of both models.
    code : tuple of str
        Modules whose class, source code or settings differ, or that only one model has.
    tokenizer : bool
        Whether the tokenizers or processors differ.
    changes : tuple of (str, float)
        Tensors of equal shape whose bits differ, with the length of the change divided by the
        length of the first model's tensor; the largest change first. A packed weight is compared as
        the dense weight that the layer multiplies by.
    n_unread : int
        Weights without values in memory (device ``meta``), which were not compared.
    """

    weights: tuple[str, ...]
    n_weights: int
    code: tuple[str, ...]
    tokenizer: bool
    changes: tuple[tuple[str, float], ...] = ()
    n_unread: int = 0

    def sentence(self) -> str:
        """Describe what differs, and what is equal.

        Examples
        --------
        >>> ModelDifference((), 12, ("blocks.1",), False).sentence()
        'All 12 weights are equal bit for bit; different: code or settings of blocks.1.'
        >>> ModelDifference(("head.bias",), 12, (), False).sentence()
        'Different: 1 of 12 weights (head.bias).'
        """
        aside = [f"code or settings of {_listed(self.code)}"] if self.code else []
        aside += ["tokenizer"] if self.tokenizer else []
        meta = f" Without values in memory, not compared: {plural(self.n_unread, 'weight')}."
        unread = meta if self.n_unread else ""
        if not self.weights:
            rest = f"; different: {', '.join(aside)}" if aside else ""
            return f"All {plural(self.n_weights, 'weight')} are equal bit for bit{rest}.{unread}"
        which = f"{len(self.weights)} of {plural(self.n_weights, 'weight')}"
        return f"Different: {', '.join([f'{which} ({_listed(self.weights)})', *aside])}.{unread}"


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def model_difference(first: Model, second: Model) -> ModelDifference:
    """Compare the weights, the tokenizers and the code of two models."""
    one, two = dense_weights(first), dense_weights(second)
    turned = _transposed(first.module) ^ _transposed(second.module)
    names = list(dict.fromkeys([*one, *two]))
    pairs = {n: _compared(one[n], two[n], n in turned) for n in names if n in one and n in two}
    names = [n for n in names if n not in pairs or not pairs[n].is_unread]
    weights = [n for n in names if n not in pairs or not pairs[n].is_equal]
    codes = [{n: _code(m) for n, m in model.module.named_modules()} for model in (first, second)]
    parts = list(dict.fromkeys([*codes[0], *codes[1]]))
    code = [n or type(first.module).__name__ for n in parts if codes[0].get(n) != codes[1].get(n)]
    inner = [n for n in code if not any(o != n and o.startswith(f"{n}.") for o in code)]
    texts = [_written(model.processor) for model in (first, second)]
    sizes = [(n, pairs[n].change) for n in weights if n in pairs]
    changes = sorted(((n, x) for n, x in sizes if x is not None), key=lambda each: -each[1])
    differ = texts[0] != texts[1]
    n_unread = sum(pair.is_unread for pair in pairs.values())
    return ModelDifference(
        tuple(weights), len(names), tuple(inner), differ, tuple(changes), n_unread
    )


@dataclass(frozen=True)
class _Pair:
    """Comparison of one weight of two models.

    Parameters
    ----------
    is_equal : bool
        Whether shape, dtype and every bit are equal.
    change : float or None
        Length of the change divided by the length of the first weight; None for other shapes.
    is_unread : bool
        Whether the weight has no values in memory.
    """

    is_equal: bool = False
    change: float | None = None
    is_unread: bool = False


def _compared(first: DenseWeight, second: DenseWeight, is_turned: bool) -> _Pair:
    a, b = first.read(), second.read()
    if a.is_meta or b.is_meta:
        return _Pair(is_unread=True)
    a, b = a.cpu(), (b.T if is_turned else b).cpu()
    if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
        return _Pair(is_equal=True)
    if a.shape != b.shape:
        return _Pair()
    a, b = a.double(), b.double()
    length, change = float(a.norm()), float((b - a).norm())
    return _Pair(change=change / length if length else math.inf)


def _transposed(module: nn.Module) -> set[str]:
    """Return the weights stored as (input, output), whose packed form is (output, input)."""
    parts = module.named_modules()
    return {f"{n}.weight".lstrip(".") for n, m in parts if kind_of(m) == "transposed"}


def _code(module: nn.Module) -> tuple[str, str, str]:
    """Return the class, its source's hash, and the printed settings of a module."""
    kind = type(module)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed into a shell, or built in
        source = ""
    digest = hashlib.sha256(source.encode()).hexdigest()
    return kind.__qualname__, digest, module.extra_repr()


def _written(processor: Any) -> str:
    """Return what tells a tokenizer from another: its class and its vocabulary."""
    if processor is None:
        return ""
    words: Any = getattr(processor, "get_vocab", None)
    vocabulary = "" if words is None else sorted(words().items(), key=lambda pair: str(pair[0]))
    return f"{type(processor).__name__} {vocabulary}"
