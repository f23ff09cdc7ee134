"""Features of one site: an overcomplete dictionary with few active entries in each row.

Use it to say what directions of a site stand for. To replace a layer take ``Transcoder``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final, get_args

from sonde.explain._codes import Act
from sonde.explain._dictionary_learner import DictionaryLearner
from sonde.explain._dictionary_training import OwnTraining


@final
@dataclass(frozen=True)
class SparseAutoencoder(DictionaryLearner):
    """Fraction of the variance that few features of a trained dictionary leave unexplained.

    ``z = act(encoder (x - offset) + bias)``, rebuilt as ``z decoder + offset`` with decoder rows of
    unit length, on rows that are centred and scaled to a mean variance of 1 for each unit (folded
    back in the result). A unit that spreads over ten times as far as the median one is scaled down
    to the median spread, or it would take all features for itself. All activations are one step of
    a proximal gradient method from 0 on the squared error with a penalty on ``z``.
    ``relu``: an l1 penalty; ``jumprelu``: a penalty on the number of active features, with a
    threshold for each; ``topk``: the ``k`` largest of a row; ``batchtopk``: the largest of a batch,
    ``k`` a row on average, and a fixed threshold once trained; ``abstopk``: the ``k`` largest by
    size, signs kept, so that one feature stands for two opposite things. ``gated``: a direction is
    read twice. One reading, with an l1 penalty, says whether a feature is active; the other,
    without, says how much. The result is a ``jumprelu`` dictionary. ``matryoshka``: as
    ``batchtopk``, and the first 1/16, 1/8, 1/4 and 1/2 of the features rebuild rows too, so that
    the first ones stand for what is common.

    The value is of a tenth of the groups (documents), which are held out of the training. Beside it
    stand the value of the rows that train, and the fraction of the held-out rows that principal
    components of the training rows leave unexplained, as many as a row has active features.

    Range        [0, inf), share of the squares of held-out rows around the mean of all rows; lower
                 = better; 1 = no better than this mean.
    Cost         2 + ``passes`` walks; state 12 features (2 dim) bytes, 16 dim^2 bytes and the rows
                 that wait; ``topk`` and ``abstopk`` make one large product in a step, others six.
    Assumes      many more rows than features. Trained by steps: it cannot merge.
    Differs      from the papers: inputs are centred and scaled by figures of the first walk; dead
                 features are those that are active in no row of ``dead_after``, not those never
                 chosen.

    Parameters
    ----------
    features : int or None, default=None
        Entries of the dictionary; None: 8 for each unit.
    k : int, default=32
        Active features of a row, where the activation says how many.
    act : str, default="topk"
        Activation, a word of the list above.
    passes : int, default=1
        Walks over the rows in training.
    batch : int, default=4096
        Rows in a step.
    rate : float or None, default=None
        Step size of Adam; None: ``2e-4 / sqrt(features / 16384)``. It rises over the first steps
        and falls over the last fifth.
    penalty : float, default=1.0
        Weight of the penalty of ``relu``, ``jumprelu`` and ``gated``.
    dead_after : int or None, default=None
        A feature that is active in none of this number of rows is dead, and learns what the others
        leave; None: 10 million, or a tenth of the training if that is less.
    mixed : int, default=4
        Batches that are mixed before they are trained on.
    patience : int, default=0
        Passes without a smaller error on held-out rows after which training stops and the best
        weights are kept; 0: it never stops early, so that the rate falls to 0 as planned.
    seed : int, default=0
        Seed of the initial weights and of the order of rows.

    Examples
    --------
    >>> import torch
    >>> source = torch.Generator().manual_seed(0)
    >>> x = torch.eye(4)[torch.randint(4, (2000,), generator=source)]
    >>> found = SparseAutoencoder(features=4, k=1, passes=20, batch=100, rate=0.01).fit(x)
    >>> round(found.value, 2), found.l0
    (0.0, 1.0)

    References
    ----------
    gao2024scaling, rajamanoharan2024jumprelu, bussmann2024batchtopk, abstopk2025,
    rajamanoharan2024gated, bussmann2025matryoshka
    """

    paper: ClassVar[str] = "gao2024scaling"
    examples: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"features": 4, "k": 2, "act": act, "batch": 16, "mixed": 2, "rate": 1e-2}
        for act in get_args(Act)
    )

    def training(self) -> OwnTraining:
        """Return the training configuration with the method's parameters."""
        return OwnTraining(**self.settings)
