"""Features of one site: an overcomplete dictionary of which few entries are active in each row.

Use it to say what directions of a site stand for. To replace a layer take ``Transcoder``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final, get_args

import torch

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.statistic import Statistic
from sonde.explain._codes import Act
from sonde.explain._dictionary_training import DictionaryState, DictionaryTraining, OwnTraining
from sonde.explain.dictionary import Dictionary


@final
@dataclass(frozen=True)
class SparseAutoencoder(Instrument):
    """Share of the variance that few features of a trained dictionary leave unexplained.

    ``z = act(encoder (x - offset) + bias)``, rebuilt as ``z decoder + offset`` with decoder rows of
    unit length, on rows scaled to ``mean |x|^2 = dim`` (folded back in the result). All activations
    are one step of a proximal gradient method from 0 on the squared error with a penalty on ``z``.
    ``relu``: an l1 penalty; ``jumprelu``: a penalty on their number, with a threshold for each;
    ``topk``: the ``k`` largest of a row; ``batchtopk``: the largest of a batch, ``k`` a row on
    average, and a fixed threshold once trained; ``abstopk``: the ``k`` largest by size, signs kept,
    so that one feature stands for two opposite things.

    Range        [0, inf), share of the variance; lower = better; 1 = no better than the mean.
    Cost         2 + ``passes`` walks; state 12 features (2 dim) bytes and the rows that wait; with
                 ``topk`` and ``abstopk`` one large product in a step instead of six.
    Assumes      many more rows than features. Trained by steps: it cannot merge.
    Differs      from the papers: inputs are scaled by one number of the first walk; dead features
                 are those that are active in no row of ``dead_after``, not those never chosen.

    Parameters
    ----------
    features : int or None, default=None
        Entries of the dictionary; None: 8 for each unit.
    k : int, default=32
        Active features of a row, where the activation says how many.
    act : {"topk", "batchtopk", "jumprelu", "relu", "abstopk"}, default="topk"
    passes : int, default=1
        Walks over the rows in training.
    batch : int, default=4096
        Rows in a step.
    rate : float or None, default=None
        Step size of Adam; None: ``2e-4 / sqrt(features / 16384)``. It rises over the first steps
        and falls over the last fifth.
    penalty : float, default=1.0
        Weight of the penalty of ``relu`` and ``jumprelu``.
    dead_after : int or None, default=None
        Rows without a feature after which it is dead and learns what the others leave; None: 10
        million, or a tenth of the training where that is less.
    mixed : int, default=4
        Batches that are mixed before they are trained on.
    seed : int, default=0
        Of weights and order.

    Examples
    --------
    >>> source = torch.Generator().manual_seed(0)
    >>> x = torch.eye(4)[torch.randint(4, (2000,), generator=source)]
    >>> found = SparseAutoencoder(features=4, k=1, passes=20, batch=100, rate=0.01).fit(x)
    >>> round(found.value, 2), found.l0
    (0.0, 1.0)

    References
    ----------
    gao2024scaling, rajamanoharan2024jumprelu, bussmann2024batchtopk, abstopk2025
    """

    features: int | None = None
    k: int = 32
    act: Act = "topk"
    passes: int = 1
    batch: int = 4096
    rate: float | None = None
    penalty: float = 1.0
    dead_after: int | None = None
    mixed: int = 4
    seed: int = 0
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "gao2024scaling"
    examples: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"features": 4, "k": 2, "act": act, "batch": 16, "mixed": 2, "rate": 1e-2}
        for act in get_args(Act)
    )

    def __post_init__(self) -> None:
        check_parameters(self)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read a training."""
        return {"trained": OwnTraining(**parameters_of(self))}

    def result(self, trained: DictionaryState) -> Dictionary:
        """Fold the scale into the trained dictionary."""
        return folded(self, trained, OwnTraining(**parameters_of(self)))


def check_parameters(method: Any, least_features: int = 1) -> None:
    """Refuse parameters out of range."""
    name = type(method).__name__
    counts = (method.k, method.passes, method.batch, method.mixed)
    n = least_features if method.features is None else method.features
    rate = 1.0 if method.rate is None else method.rate
    dead = 1 if method.dead_after is None else method.dead_after
    if min(*counts, dead) < 1 or n < least_features or not 0 < rate < math.inf:
        raise InputError(
            f"{name}: expected features of at least {least_features}, k, passes, batch, mixed and "
            f"dead_after of at least 1 and a rate above 0, got {method}."
        )
    if method.act not in get_args(Act) or not 0 <= method.penalty < math.inf:
        raise InputError(
            f"{name}: expected act among {', '.join(get_args(Act))} and a penalty of at least 0, "
            f"got {method.act!r} and {method.penalty}."
        )


def parameters_of(method: Any) -> dict[str, Any]:
    """Return the parameters of the training of a method."""
    names = ("features", "k", "act", "passes", "batch", "penalty", "dead_after", "seed")
    own = {"top_rate": method.rate, "buffer": method.mixed * method.batch}
    return {n: getattr(method, n) for n in names} | own


def folded(method: Any, trained: DictionaryState, training: DictionaryTraining) -> Dictionary:
    """Return a trained dictionary for states as they are, with its health.

    A training that diverged gives the weights before the step that it names.
    """
    name = type(method).__name__
    if trained.diverged is None or trained.fired is None:
        trained.require_trained(name)
    encoder, bias, decoder, offset, *more = (v.double().cpu() for v in trained.weights.values)
    scale, scale_out = trained.scale, trained.scale_out
    total = sum(float(m.scatter.sum()) for m in trained.rebuilt)
    fired = torch.zeros(len(bias)) if trained.fired is None else trained.fired.cpu()
    threshold = training.threshold(trained)
    flags = ["diverged"] if trained.diverged is not None else []
    flags += ["dead"] if total == 0 else []
    widths = tuple(len(m.mean) for m in (trained.read if training.is_own else trained.rebuilt))
    return Dictionary(
        value=trained.error / total if total > 0 else math.nan,
        n=trained.n,
        range=(0.0, math.inf),
        direction="lower",
        flags=tuple(flags),
        conventions={
            "value": "share of variance unexplained, sums over all rows and units",
            "l0": float(fired.sum()) / max(1, trained.n),
            "dead share": float((fired == 0).double().mean()) if len(fired) else 0.0,
            "steps": trained.weights.steps,
            "rows in training": trained.losses[0].n if trained.losses else 0,
            "diverged at step": trained.diverged,
            "scale": float(scale[0]),
            "se": "not given: a trained dictionary",
        },
        encoder=(encoder * scale).float(),
        bias=bias.float(),
        centre=(offset / scale_out).float() if training.is_own else torch.zeros(len(scale)),
        decoder=(decoder / scale_out).float(),
        offset=(offset / scale_out).float(),
        threshold=None if threshold is None else threshold.float().cpu().reshape(-1),
        skip=(more[-1] * scale / scale_out[:, None]).float() if training.skip else None,
        act=method.act,
        k=method.k,
        density=fired.double() / max(1, trained.n),
        widths=widths if len(widths) > 1 else (),
        scales=tuple(float(s[0]) for s in scale_out.split(list(widths))) if len(widths) > 1 else (),
    )
