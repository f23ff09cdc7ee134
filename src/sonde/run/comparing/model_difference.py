"""What differs between two models besides their states: weights, tokenizer, code of modules."""

import hashlib
import inspect
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.core.wording import plural

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
        length of the first model's tensor; the largest change first.
    """

    weights: tuple[str, ...]
    n_weights: int
    code: tuple[str, ...]
    tokenizer: bool
    changes: tuple[tuple[str, float], ...] = ()

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
        if not self.weights:
            rest = f"; different: {', '.join(aside)}" if aside else ""
            return f"All {plural(self.n_weights, 'weight')} are equal bit for bit{rest}."
        which = f"{len(self.weights)} of {plural(self.n_weights, 'weight')}"
        return f"Different: {', '.join([f'{which} ({_listed(self.weights)})', *aside])}."


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def model_difference(first: Model, second: Model) -> ModelDifference:
    """Compare the weights, the tokenizers and the code of two models."""
    one, two = (dict(_tensors(model.module)) for model in (first, second))
    names = list(dict.fromkeys([*one, *two]))
    weights = [n for n in names if n not in one or n not in two or not _equal(one[n], two[n])]
    codes = [{n: _code(m) for n, m in model.module.named_modules()} for model in (first, second)]
    parts = list(dict.fromkeys([*codes[0], *codes[1]]))
    code = [n or type(first.module).__name__ for n in parts if codes[0].get(n) != codes[1].get(n)]
    inner = [n for n in code if not any(o != n and o.startswith(f"{n}.") for o in code)]
    texts = [_written(model.processor) for model in (first, second)]
    sizes = [(n, _change(one[n], two[n])) for n in weights if n in one and n in two]
    changes = sorted(((n, x) for n, x in sizes if x is not None), key=lambda each: -each[1])
    differ = texts[0] != texts[1]
    return ModelDifference(tuple(weights), len(names), tuple(inner), differ, tuple(changes))


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a.detach().cpu(), b.detach().cpu()))


def _change(a: Tensor, b: Tensor) -> float | None:
    """Return the length of a change relative to the first tensor, or None for other shapes."""
    if a.shape != b.shape or a.is_meta or b.is_meta:
        return None
    first = a.detach().cpu().double()
    length = float(first.norm())
    change = float((b.detach().cpu().double() - first).norm())
    return change / length if length else math.inf


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
