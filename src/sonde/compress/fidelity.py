"""Divergence of a changed model's answers from the original model's answers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.metrics.intervals import Bootstrap, measured
from sonde.stats.divergence import kl_divergence
from sonde.tap import live_stream, place_of
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.outputs import find, leaves
from sonde.tap.model.vary import token_ids
from sonde.tap.rows.padding import right_padded
from sonde.tap.streams.answers import Answers, answers_in
from sonde.weights import as_model


@dataclass(frozen=True)
class Fidelity:
    """Divergence of two models' answers.

    Parameters
    ----------
    n : int
        Answers that were compared: tokens of texts, else examples.
    kl : float
        Mean of ``KL(original || changed)`` over answers, in nats. This and its interval and
        quantile are NaN for models that answer with vectors.
    kl_low : float
        Lower end of the 95 % interval of the KL divergence, from resampled groups of examples; NaN
        if there is a single group.
    kl_high : float
        Upper end of the 95 % interval of the KL divergence, from resampled groups of examples; NaN
        if there is a single group.
    kl_99 : float
        99 % quantile of the KL divergence.
    changed : float
        Fraction of answers whose most likely class is another, in [0, 1]. For vectors: of examples
        whose nearest other example, by the cosine, is another.
    right_to_wrong, wrong_to_right : float
        Shares of the answers whose truth is known.
    cosine, cosine_low, cosine_high, cosine_5 : float
        For models that answer with vectors: mean cosine between both models' vectors of an example,
        its 95 % interval from resampled groups, and the 5 % quantile. NaN for all others.
    """

    n: int
    kl: float
    kl_low: float
    kl_high: float
    kl_99: float
    changed: float
    right_to_wrong: float
    wrong_to_right: float
    cosine: float = math.nan
    cosine_low: float = math.nan
    cosine_high: float = math.nan
    cosine_5: float = math.nan

    @property
    def loss(self) -> float:
        """Loss for searches: the mean KL in nats, or 1 - cosine for vectors."""
        return self.kl if math.isnan(self.cosine) else 1.0 - self.cosine

    def json(self) -> dict[str, Any]:
        """Return the statistics by name."""
        return asdict(self)


@torch.no_grad()
def fidelity(
    model: Model | nn.Module,
    changed: nn.Module,
    inputs: Inputs,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Fidelity:
    """Return how much a changed model's answers differ from a model's answers.

    A classifier or a language model is compared by the divergence of its distributions. A model
    without logits (``BertModel``, a sentence encoder) answers with vectors: each example's states
    are averaged over real tokens, and compared by the cosine.

    Parameters
    ----------
    model : Model or nn.Module
        Original model.
    changed : nn.Module
        Changed model, which is compared with the original.
    inputs : Inputs
        A text has an answer for each token after the first, a decoder for each of its tokens, a
        masked language model for each token; other inputs have one each.
    start, stop : int, optional
        Compare on these examples alone.

    Raises
    ------
    InputError
        If there is no answer.
    """
    live, parts = as_model(model), dict[str, list[Tensor]]()
    end = len(inputs) if stop is None else min(stop, len(inputs))
    groups: dict[bytes, int] = {}
    logits = live_stream(live, inputs, logits_asked=True).logits_key
    is_vector = False
    for batch in map(right_padded, inputs.batches(start, end)):
        place = place_of(live.module, batch)
        args, kwargs = place.call(batch.args, batch.kwargs)
        with in_eval(live.module, changed):
            outputs = [module(*args, **kwargs) for module in (live.module, changed)]
        one, other = (told_by(output, live, batch, logits) for output in outputs)
        is_vector = one is None or other is None
        if one is None or other is None:
            vectors = [vectors_of(output, live, batch) for output in outputs]
            numbers_of = {"one": vectors[0], "other": vectors[1]}
            example = torch.arange(len(batch))
        else:
            numbers_of, example = _compared(one, other), one.example
        numbers = [groups.setdefault(key, len(groups)) for key in batch.group_keys]
        for name, x in {**numbers_of, "group": torch.tensor(numbers)[example]}.items():
            parts.setdefault(name, []).append(x.double().cpu())
    if not parts or not sum(map(len, parts["group"])):
        raise InputError("fidelity: expected examples with answers, got none. Pass more data.")
    whole = {name: torch.cat(x) for name, x in parts.items()}
    return _of_vectors(whole) if is_vector else _of_answers(whole)


def _compared(one: Answers, other: Answers) -> dict[str, Tensor]:
    """Return the probabilities, the divergence and the agreement of each answer of two models."""
    p, q = one.log_p.double(), other.log_p.double()
    tops, is_known = (p.argmax(1), q.argmax(1)), one.truth >= 0
    right = [(top == one.truth) & is_known for top in tops]
    return {
        "kl": kl_divergence(p, q).nan_to_num(nan=torch.inf, posinf=torch.inf),
        "changed": tops[0] != tops[1],
        "lost": right[0] & ~right[1],
        "won": right[1] & ~right[0],
        "known": is_known,
    }


def _of_answers(whole: Mapping[str, Tensor]) -> Fidelity:
    n_known = float(whole["known"].sum()) or math.nan  # without labels nothing is known of right
    low, high = _interval(whole["kl"], whole["group"].long())
    return Fidelity(
        n=len(whole["kl"]),
        kl=float(whole["kl"].mean()),
        kl_low=low,
        kl_high=high,
        kl_99=float(whole["kl"].quantile(0.99)) if len(whole["kl"]) < 2**24 else float("nan"),
        changed=float(whole["changed"].mean()),
        right_to_wrong=float(whole["lost"].sum()) / n_known,
        wrong_to_right=float(whole["won"].sum()) / n_known,
    )


def _of_vectors(whole: Mapping[str, Tensor]) -> Fidelity:
    one, other = whole["one"], whole["other"]
    cosine = nn.functional.cosine_similarity(one, other, dim=1)
    low, high = _interval(cosine, whole["group"].long())
    nearest = [_nearest(nn.functional.normalize(x, dim=1)) for x in (one, other)]
    none = math.nan
    return Fidelity(
        n=len(one),
        kl=none,
        kl_low=none,
        kl_high=none,
        kl_99=none,
        changed=float((nearest[0] != nearest[1]).double().mean()),
        right_to_wrong=none,
        wrong_to_right=none,
        cosine=float(cosine.mean()),
        cosine_low=low,
        cosine_high=high,
        cosine_5=float(cosine.quantile(0.05)),
    )


def _nearest(unit: Float[Tensor, "example dim"]) -> Int[Tensor, "example"]:
    """Return the nearest other example of each example, by cosine."""
    return (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(1)


def _interval(kl: Tensor, group: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of a mean over answers, by resampling groups of answers."""
    n_groups = int(group.max()) + 1
    sums, counts = torch.zeros(2, n_groups, dtype=torch.float64)
    sums.index_add_(0, group, kl)
    counts.index_add_(0, group, torch.ones_like(kl))

    def mean(weights: Tensor) -> Tensor:
        return (weights @ sums) / (weights @ counts)

    interval = measured(mean, torch.arange(n_groups), Bootstrap())
    return interval.low, interval.high


def told_by(output: Any, model: Model, batch: InputBatch, logits: str | None) -> Answers | None:
    """Return the probabilities in an output, or None if the model answers with vectors.

    Parameters
    ----------
    output
        What the module returned for the batch.
    model : Model
    batch : InputBatch
        Padded on the right.
    logits : str or None
        Which output holds the logits; None if the task has no logits of its own: those of a decoder
        or of a masked language model are found by their name, one row for each token.
    """
    if logits is not None:
        return answers_in(output, model, model.module, batch, logits)
    raw = find(output, "logits")
    axis = "pos2" if model.task == "seq2seq" else "pos"
    ids = token_ids(batch, axis)
    if raw is None or not raw.is_floating_point():
        return None
    if raw.ndim != 3 or ids is None or ids.shape != raw.shape[:2]:
        return None
    mask = batch.decoder_mask if axis == "pos2" else batch.mask
    real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.cpu()
    example, place = real.nonzero(as_tuple=True)
    log_p = torch.log_softmax((raw if raw.dtype == torch.float64 else raw.float()).cpu(), -1)
    truth = torch.full(ids.shape, -1)
    if axis == "pos2":
        truth[:, :-1] = torch.where(real[:, 1:], ids[:, 1:].cpu(), -1)
    return Answers(log_p[example, place], truth[example, place], example)


def vectors_of(output: Any, model: Model, batch: InputBatch) -> Float[Tensor, "example dim"]:
    """Return each example's vector: the mean of its states over tokens that are not padding.

    The states are the first output with a state for each token, else the first with a row for each
    example; further axes of a map are averaged.

    Raises
    ------
    InputError
        If there is no such output.
    """
    n = len(batch)
    tensors = [x for x in leaves(output).values() if x.is_floating_point() and x.ndim > 1]
    rows = [x for x in tensors if len(x) == n]
    if not rows:
        raise InputError(
            f"fidelity: expected logits or a vector for each example, got "
            f"{', '.join(str(tuple(x.shape)) for x in tensors) or 'no numbers'} from "
            f"{type(model.module).__name__}. Wrap the model so that it returns one of these."
        )
    states = next((x for x in rows if x.ndim == 3), rows[0]).double().cpu()
    if states.ndim == 4:
        return states.mean((2, 3))
    if states.ndim == 2:
        return states
    mask = batch.mask
    if mask is None or mask.shape != states.shape[:2]:
        return states.flatten(1, -2).mean(1)
    weight = mask.cpu().double()[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
