"""Compare a tokenizer's words with the rows of the model's table of token embeddings.

In a trained table a word lies near its plural and near itself with a capital. If the tokenizer of
another model is loaded, or ids are shifted, such pairs lie no nearer than any two words, although
the table has near neighbours. This needs no forward pass and no labels.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.data.processors import is_tokenizer
from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream

LEAST_PAIRS: Final = 100
PAIRS, DRAWS = 2_000, 8
WORDS, ROWS, WIDTH = 400, 8_192, 512
"""Of the search for nearest neighbours: a wider table is projected at random."""
DOUBT: Final = 0.75
"""Below it, the table's own structure and ids with a step are looked at."""
LETTERS: Final = 4
STEPS: Final = tuple(sorted((s for s in range(-16, 17) if s), key=abs))
MARKS: Final = "Ġ▁"
"""What byte-level and SentencePiece tokenizers write for a leading space."""


@dataclass(frozen=True, eq=False)
class VocabularyFit:
    """How near related words lie in the table of token embeddings.

    Parameters
    ----------
    path : str
        The module of the table.
    example : (str, str)
        One pair.
    n : int
        Number of pairs of related words.
    nearer, error : float
        Fraction of pairs that are nearer than a word and the partner of another word, with its
        standard error; 0.5 = chance.
    near, by_chance : float
        Median cosine of a token and its nearest neighbour, and that of normal rows with the same
        covariance; NaN if most pairs are nearer.
    step : int
        Step of all ids with which the words fit best; 0 if most pairs are nearer as they are.
    stepped : float
        ``nearer`` with that step.
    """

    path: str
    example: tuple[str, str]
    n: int
    nearer: float
    error: float
    near: float = math.nan
    by_chance: float = math.nan
    step: int = 0
    stepped: float = math.nan


def compare_vocabulary(stream: LiveStream, _: Evidence) -> VocabularyFit | str:
    """Return the fit of the model's tokenizer to its input embeddings, or the reason for none."""
    tokenizer = getattr(stream.model.processor, "tokenizer", stream.model.processor)
    if not is_tokenizer(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        return "no tokenizer is known"
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    table = _table(stream, 1 + max(vocabulary.values(), default=0))
    if table is None:
        return "no table of token embeddings has a row for each token"
    return fit_of(*table, vocabulary, stream.seed)


def _table(stream: LiveStream, n: int) -> tuple[str, Tensor] | None:
    """Return the first table that ran and has a row for each token."""
    for path, module in stream.probe.names.modules.items():
        if isinstance(module, nn.Embedding) and stream.probe.calls(path) > 0:
            weight: Any = module.weight
            if type(weight.data) is Tensor and not weight.is_meta and len(weight) >= n:
                return path, weight.detach()
    return None


def fit_of(
    path: str, table: Float[Tensor, "token dim"], vocabulary: Mapping[str, int], seed: int
) -> VocabularyFit | str:
    """Return the fit of a vocabulary to a table."""
    related = list(_related(vocabulary))
    if len(related) < LEAST_PAIRS:
        return f"fewer than {LEAST_PAIRS} pairs of related words are whole tokens"
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(related), generator=draw)[:PAIRS].tolist()
    words = [related[i] for i in chosen]
    at = torch.tensor([[vocabulary[a], vocabulary[b]] for a, b in words])
    partners = torch.stack([torch.randperm(len(at), generator=draw) for _ in range(DRAWS)])
    some = _rows(table, torch.randperm(len(table), generator=draw)[:ROWS])
    middle = some.mean(0)

    def nearer(step: int) -> tuple[float, float]:
        a, b = (_rows(table, (at[:, i] + step) % len(table)) - middle for i in (0, 1))
        return _nearer(a, b, partners)

    if not bool(torch.isfinite(_rows(table, at.flatten())).all() & torch.isfinite(middle).all()):
        return "the table of token embeddings has NaN or infinity"
    fit = VocabularyFit(path, words[0], len(at), *nearer(0))
    if fit.nearer + 3 * fit.error >= DOUBT:
        return fit
    tried = {step: nearer(step)[0] for step in STEPS}
    best = max(tried, key=lambda step: tried[step])
    near, by_chance = _neighbours(some - middle, draw)
    return replace(fit, near=near, by_chance=by_chance, step=best, stepped=tried[best])


def _rows(table: Float[Tensor, "token dim"], at: Int[Tensor, "row"]) -> Float[Tensor, "row dim"]:
    return table[at.to(table.device)].float().cpu()  # a whole table may have gigabytes


def _related(vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield words with their plural, and with their capital."""
    for word in sorted(vocabulary):
        mark = word[:1] if word[:1] in MARKS else ""
        core = word[len(mark) :]
        if len(core) >= LETTERS and core.isalpha() and core.islower():
            for other in (f"{word}s", f"{mark}{core.capitalize()}"):
                if other in vocabulary:
                    yield word, other


def _nearer(
    a: Float[Tensor, "pair dim"], b: Float[Tensor, "pair dim"], partners: Int[Tensor, "draw pair"]
) -> tuple[float, float]:
    """Return the fraction of pairs that are nearer than a word and another partner."""
    a, b = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
    own = (a * b).sum(1)
    wins = torch.stack([(own > (a * b[other]).sum(1)).double() for other in partners]).mean(0)
    return float(wins.mean()), float(wins.std()) / len(wins) ** 0.5


def _neighbours(y: Float[Tensor, "token dim"], draw: torch.Generator) -> tuple[float, float]:
    """Return the median cosine of nearest neighbours in a table, and by chance."""
    if y.shape[1] > WIDTH:
        y = y @ torch.randn(y.shape[1], WIDTH, generator=draw)
    values, axes = torch.linalg.eigh((y.T @ y / len(y)).double())
    root = (axes * values.clamp(min=0).sqrt()).float() @ axes.T.float()
    return _nearest(y), _nearest(torch.randn(y.shape, generator=draw) @ root)


def _nearest(y: Float[Tensor, "token dim"]) -> float:
    y = nn.functional.normalize(y, dim=1)
    cosines = y[:WORDS] @ y.T
    return float(cosines.fill_diagonal_(-1.0).amax(1).median())
