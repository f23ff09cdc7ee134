"""Detect machine-written text by token metrics of a language model, weighted by its states.

Learned from texts of both kinds. ``TokenStatistics`` needs no training and weighs tokens equally.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.instrument import Detector, NotLabelled, Where
from sonde.core.reduction import OWN, Reduced, reduce_scores
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import State, map_tensors
from sonde.core.statistic import Learner, Span, Statistic
from sonde.core.wording import plural
from sonde.detect._token_net import N_METRICS, NetShape, TextTokens, text_logits, token_logits
from sonde.stats import TOKEN_METRICS
from sonde.stats.sequences import example_numbers
from sonde.stats.training import generator
from sonde.stats.training_weights import Tally, Weights


@dataclass(frozen=True)
class PAWNState(State):
    """Weights, with the gradient of the texts since the last step.

    ``seen`` counts texts over all walks; ``n_positive`` and ``n_other`` those of the first one.
    """

    walks: int
    shape: NetShape
    net: Weights
    gradient: tuple[Tensor, ...]
    pending: int
    loss: Tally
    seen: int
    n_positive: int
    n_other: int


@final
@dataclass(frozen=True)
class PAWNTraining(Learner[PAWNState]):
    """Training of ``PAWN``, which documents the parameters."""

    features: int
    gates: int
    hidden: int
    depth: int
    max_length: int
    epochs: int
    batch: int
    rate: float
    decay: float
    clip: float
    dropout: float
    smoothing: float
    positive: int
    seed: int
    span: ClassVar[Span] = "pair"
    whole_examples: ClassVar[bool] = True

    def start(self, dim: int) -> PAWNState:
        """Return the network before the first step."""
        shape = NetShape(dim, self.features, self.gates, self.hidden, self.depth)
        net = Weights.of(*shape.weights(self.seed))
        zeros = tuple(torch.zeros_like(v) for v in net.values)
        return PAWNState(0, shape, net, zeros, 0, Tally(), 0, 0, 0)

    def n_passes(self) -> int:
        """Return one pass to count texts of each kind, plus the training passes."""
        return 1 + self.epochs

    def update(
        self,
        state: PAWNState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row metric"],
        label: Int[Tensor, "row"],
        ids: Int[Tensor, "row 2"],
        occurrence: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> PAWNState:
        """Count labelled texts in the first pass, then train on them."""
        check_metrics(y.shape[1])
        labelled = torch.nonzero(label >= 0).flatten()
        text = example_numbers(ids[labelled], occurrence[labelled])
        n = int(text.max()) + 1 if len(text) else 0
        kind = torch.zeros(n, dtype=torch.int64).scatter_(0, text, label[labelled])
        if state.walks == 0:
            n_positive = int((kind == self.positive).sum())
            counts = state.n_positive + n_positive, state.n_other + n - n_positive
            return replace(state, n_positive=counts[0], n_other=counts[1])
        at = labelled.to(x.device)
        state = map_tensors(state, lambda t: t.to(x.device))
        columns = x[at].float(), y[at, :N_METRICS].to(x.device).float()
        texts = TextTokens.of(*columns, text, position[labelled], self.max_length)
        target = (kind == self.positive).to(columns[0])
        return self._trained(state, texts, target) if n else state

    def _trained(
        self, state: PAWNState, texts: TextTokens, target: Float[Tensor, "text"]
    ) -> PAWNState:
        first = 0
        while first < len(target):
            free = self.batch - state.pending
            part = next(texts.since(first).chunks(free))
            n = len(part.counts)
            state = self._seen(state, part, target[first : first + n])
            state = self._stepped(state) if state.pending == self.batch else state
            first += n
        return state

    def _seen(
        self, state: PAWNState, texts: TextTokens, target: Float[Tensor, "text"]
    ) -> PAWNState:
        """Return the state with some texts' gradient added."""
        kept = None
        if self.dropout:
            kept = texts.dropped(self.dropout, generator("dropout", self.seed, state.seen))
        smooth = target * (1 - self.smoothing) + self.smoothing / 2
        weight = target.new_tensor(state.n_other / state.n_positive)
        with torch.enable_grad():
            values = state.net.live().values
            logits = text_logits(values, state.shape, texts, kept)
            loss = binary_cross_entropy_with_logits(
                logits, smooth, pos_weight=weight, reduction="sum"
            )
            gradient = torch.autograd.grad(loss, values)
        return replace(
            state,
            gradient=tuple(a + b for a, b in zip(state.gradient, gradient, strict=True)),
            pending=state.pending + len(target),
            seen=state.seen + len(target),
            loss=state.loss.plus(float(loss.detach()), len(target)),
        )

    def _stepped(self, state: PAWNState) -> PAWNState:
        """Return the state after a step along the mean gradient, clipped to ``clip``."""
        if state.pending == 0:
            return state
        mean = [g / state.pending for g in state.gradient]
        length = float(torch.stack([g.norm() for g in mean]).norm())
        cut = min(1.0, self.clip / (length + 1e-6))
        live = state.net.live()
        live.adam([cut * g for g in mean], self.rate, self.decay, decoupled=True)
        live.steps += 1
        zeros = tuple(torch.zeros_like(g) for g in state.gradient)
        return replace(state, net=live.kept(), gradient=zeros, pending=0)

    def close_pass(self, state: PAWNState) -> PAWNState:
        """Take the last texts' step; raise if all texts are of one kind."""
        if state.walks == 0 and min(state.n_positive, state.n_other) == 0:
            raise InputError(
                f"PAWN: expected texts of label {self.positive} and of another, got "
                f"{state.n_positive} and {state.n_other}. Give labelled texts of both kinds."
            )
        is_last = state.walks == self.epochs
        loss = state.loss if is_last else Tally()
        return replace(self._stepped(state), walks=state.walks + 1, loss=loss)


def check_metrics(width: int, owner: str = "PAWN") -> None:
    """Raise if rows are not token metrics."""
    if width != len(TOKEN_METRICS):
        raise ShapeError(
            f"{owner}: expected hidden states at a first site and {len(TOKEN_METRICS)} token "
            f"metrics at a second, got rows of width {width} there. Read the sites of "
            "PAWN().reading()."
        )


@final
@dataclass(frozen=True, kw_only=True)
class PAWNScorer(Scorer):
    """A trained network; ``value`` is the mean loss of its last pass."""

    shape: NetShape
    values: tuple[Tensor, ...]
    max_length: int

    def score(
        self, x: Sequence[Float[Tensor, "row _dim"]], position: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """Return each token's logit as a one-token text; ``reduced`` scores whole texts."""
        states, metrics = self._checked(x)
        wide = metrics if metrics.dtype == torch.float64 else metrics.float()
        values = [v.to(wide) for v in self.values]
        scores = token_logits(values, self.shape, wide[:, :N_METRICS])
        return infinite_where_nonfinite(scores, metrics, states)

    def _checked(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if len(x) != 2:
            raise ShapeError(
                f"PAWN.score: expected hidden states and token metrics, got "
                f"{plural(len(x), 'site')}."
            )
        check_metrics(x[1].shape[1], "PAWN.score")
        if x[0].shape[1] != self.shape.dim:
            raise ShapeError(
                f"PAWN.score: expected dim={self.shape.dim} (as fitted), got "
                f"dim={x[0].shape[1]}. Fit a second scorer for that site."
            )
        return x[0], x[1]

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return each text's logit, or another reduction of its tokens' scores."""
        likeliest = reduce_scores(scores, example, "max" if how == OWN else how)
        if how != OWN:
            return likeliest
        states, metrics = self._checked(columns[0])
        dtype = torch.float64 if metrics.dtype == torch.float64 else torch.float32
        values = [v.to(states.device, dtype) for v in self.values]
        text = torch.searchsorted(likeliest.example, example.contiguous())
        rows = states.to(dtype), metrics[:, :N_METRICS].to(states.device, dtype)
        texts = TextTokens.of(*rows, text, columns[1].cpu(), self.max_length)
        with torch.no_grad():
            parts = [text_logits(values, self.shape, t) for t in texts.chunks(len(text))]
        text_scores = torch.cat(parts).double().cpu()
        bad = torch.isinf(likeliest.score) | ~torch.isfinite(text_scores)
        return replace(likeliest, score=text_scores.masked_fill(bad, math.inf))


@final
@dataclass(frozen=True)
class PAWN(Detector):
    """Similarity of a text to the texts of one label, by learned weights over token metrics.

    A small net makes features of five metrics of each predicted token (log p of the token that
    came, entropy, largest log p, rank quantile, top-p mass). A second net reads the states at the
    token and at the token before, and the place in the text; its gates are weights, each a softmax
    over the tokens of the text. A third net maps the weighted sum to a logit. States reach the
    answer through the weights alone.

    Range        (-inf, inf), log odds at balanced classes; higher = more like ``positive``.
    Cost         1 + ``epochs`` walks over the rows, so store these first; state 16 bytes for each
                 weight, by default ``512 dim + 596,737`` of them (16 MB at dim 768).
    Assumes      labelled texts of both kinds, mixed in the data: steps follow its order. Rows come
                 by ``sonde.read(model, data, **PAWN().reading())``: hidden states of every token
                 and the metrics of every predicted one.
    Differs      from the paper: texts are not shuffled; the state before the first predicted token
                 of a text is zeros; where normalisation stands was not stated (before GELU here).

    Parameters
    ----------
    features, gates : int, default=256
        Width of a token's features, and how many weights it has; ``gates`` divides ``features``.
    hidden, depth : int, default=256, 3
        Units and hidden layers of each net.
    dropout : float, default=0.15
        Share of the tokens of a text that a training step leaves out; one is always kept.
    max_length : int, default=512
        Tokens of a text that count.
    epochs, batch : int, default=5, 128
        Walks over the texts, and texts in a step.
    rate, decay, clip : float, default=1e-3, 1e-2, 1.0
        Step size and weight decay of AdamW, and the greatest length of a gradient.
    smoothing : float, default=0.2
        Amount of label smoothing, in [0, 1).
    positive : int, default=1
        The label that scores high; every other label is usual, -1 is left out.
    seed : int, default=0
        Seed of the initial weights and of the order of rows.

    Examples
    --------
    >>> label = torch.arange(160) // 4 % 2
    >>> metrics = torch.zeros(160, 7) - 1.0 - 2.0 * label[:, None]
    >>> rows = {"states": torch.zeros(160, 3), "metrics": metrics}
    >>> small = PAWN(features=4, gates=2, hidden=8, depth=1, epochs=30, batch=8, rate=1e-2)
    >>> scorer = small.fit(rows, label, ids=[str(i // 4) for i in range(160)],
    ...                    position=torch.arange(160) % 4)
    >>> scorer.score((torch.zeros(2, 3), metrics[3:5]), torch.tensor([1, 1])).sign().tolist()
    [-1.0, 1.0]

    References
    ----------
    miralles2025pawn
    """

    features: int = 256
    gates: int = 256
    hidden: int = 256
    depth: int = 3
    dropout: float = 0.15
    max_length: int = 512
    epochs: int = 5
    batch: int = 128
    rate: float = 1e-3
    decay: float = 1e-2
    clip: float = 1.0
    smoothing: float = 0.2
    positive: int = 1
    seed: int = 0
    span: ClassVar[Span] = "all"
    reduces: ClassVar[bool] = True
    paper: ClassVar[str] = "miralles2025pawn"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 8, "gates": 4, "hidden": 8, "depth": 1, "epochs": 2, "batch": 16},
        {"features": 6, "gates": 6, "hidden": 8, "depth": 2, "epochs": 1, "dropout": 0.0},
    )

    def __post_init__(self) -> None:
        counts = (self.features, self.gates, self.hidden, self.depth, self.max_length)
        if min(*counts, self.epochs, self.batch) < 1 or self.features % max(1, self.gates):
            raise InputError(
                "PAWN: expected counts of at least 1 and a number of features that is a multiple "
                f"of the number of gates, got {self}."
            )
        shares = 0 <= self.dropout < 1 and 0 <= self.smoothing < 1 and self.decay >= 0
        if not shares or not all(0 < v < math.inf for v in (self.rate, self.clip)):
            raise InputError(
                "PAWN: expected dropout and smoothing in [0, 1), decay of at least 0, rate and "
                f"clip above 0, got {self}."
            )

    @property
    def usual(self) -> Where:
        """Select texts not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reading(self) -> dict[str, Any]:
        """Return the reading of states before the logits, and the metrics of predicted tokens."""
        return {"sites": ["logits:in|tokens", "logits|predictions"]}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the training state."""
        training = PAWNTraining(
            features=self.features,
            gates=self.gates,
            hidden=self.hidden,
            depth=self.depth,
            max_length=self.max_length,
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            decay=self.decay,
            clip=self.clip,
            dropout=self.dropout,
            smoothing=self.smoothing,
            positive=self.positive,
            seed=self.seed,
        )
        return {"trained": training}

    def result(self, trained: PAWNState) -> PAWNScorer:
        """Return the scorer with the weights after the last step."""
        if trained.net.steps == 0:
            raise StateError(
                "PAWN: expected a trained net, got rows of "
                f"{plural(trained.n_positive + trained.n_other, 'text')} and no step of training. "
                "Fit it with fit or sonde.fit, which read the rows several times; update reads "
                "them once."
            )
        if not all(bool(torch.isfinite(w).all()) for w in trained.net.values):
            raise StateError(
                "PAWN: the training diverged. Take a smaller rate, or check the rows for very "
                "large values."
            )
        return PAWNScorer(
            value=trained.loss.average,
            n=trained.n_positive + trained.n_other,
            conventions={
                "value": "mean loss of a text in the last walk",
                "positive": self.positive,
                "texts": [trained.n_other, trained.n_positive],
                "steps": trained.net.steps,
                "metrics": list(TOKEN_METRICS[:N_METRICS]),
                "se": "not given for a scorer: calibrate its scores",
            },
            shape=trained.shape,
            values=trained.net.values,
            max_length=self.max_length,
        )
