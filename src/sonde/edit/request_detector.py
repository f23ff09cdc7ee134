"""Detect the texts of a request to forget, by the states of several layers.

For the gate of an adapter if only the request's own texts are at hand, and the states of one layer
do not tell these texts from others. With examples of both kinds a probe is stronger.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import infinite_where_nonfinite
from sonde.core.site import Reducer, Site
from sonde.core.state import State
from sonde.data import open_inputs
from sonde.engine.steps import Descent, seeded
from sonde.stats import inverse_root
from sonde.tap import live_stream, resolve
from sonde.weights import as_model

HELD = 4
"""One text of so many sets the scale of the scores; nothing else is fitted on it."""
LEAST_TEXTS = 8
PIECE = re.compile(r"\s*(?:\w+|[^\w\s])")
Sites = str | Site | Sequence[str | Site]


@final
@dataclass(frozen=True)
class RequestLayer(State):
    """Statistics of a request's texts at one layer.

    Parameters
    ----------
    encoder : Float[Tensor, "dim code"]
        Codes of length 1 are made of ``x @ encoder - origin``.
    origin, mean : Float[Tensor, "code"]
        ``mean`` is the mean of the codes.
    root : Float[Tensor, "code rank"]
        Square root of the inverse covariance of the codes.
    bank : Float[Tensor, "text code"]
        Codes of the texts.
    centre, scale : Float[Tensor, "2"]
        Mean and spread of the distance and of the largest cosine, over the request's held-out
        texts.
    """

    encoder: Float[Tensor, "dim code"]
    origin: Float[Tensor, "code"]
    mean: Float[Tensor, "code"]
    root: Float[Tensor, "code rank"]
    bank: Float[Tensor, "text code"]
    centre: Float[Tensor, "2"]
    scale: Float[Tensor, "2"]

    def code(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row code"]:
        """Return the encoded rows."""
        return _code(x.double(), self.encoder.to(x.device), self.origin.to(x.device))

    def measured(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row 2"]:
        """Return each row's Mahalanobis distance, and its largest cosine with a text."""
        code = self.code(x)
        away = (code - self.mean.to(x.device)) @ self.root.to(x.device)
        return torch.stack([away.norm(dim=1), (code @ self.bank.to(x.device).T).amax(1)], 1)

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return a row's standardised distance and dissimilarity to the request's texts."""
        z = (self.measured(x) - self.centre.to(x.device)) / self.scale.to(x.device)
        return (z[:, 0] - z[:, 1]) / 2


@final
@dataclass(frozen=True)
class RequestScorer(State):
    """Scores of concatenated rows of several layers; higher = less like the request's texts.

    Parameters
    ----------
    layers : tuple of RequestLayer
    """

    layers: tuple[RequestLayer, ...]

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the mean of the layers' scores; ``+inf`` for a row that is not finite."""
        return infinite_where_nonfinite(self.by_layer(x).mean(1), x)

    def by_layer(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row layer"]:
        """Return the score of each layer."""
        widths = [len(layer.encoder) for layer in self.layers]
        if x.shape[1] != sum(widths):
            raise ShapeError(
                f"RequestScorer: expected dim={sum(widths)}, the rows of {len(widths)} layers "
                f"joined, got dim={x.shape[1]}. Read the sites that it was learned at."
            )
        parts = zip(self.layers, x.split(widths, 1), strict=True)
        return torch.stack([layer.score(rows) for layer, rows in parts], 1)


@final
@dataclass(frozen=True)
class RequestDetector:
    """Learn to detect the texts of a request, from these texts only. Trained.

    A linear encoder for each layer maps the states of the frozen model to codes of length 1. It is
    trained by contrast: two views of a text, each without a share of its words, are to be nearer to
    each other than to views of other texts. At each layer the score is half of a difference: a
    text's Mahalanobis distance from the request's codes less its largest cosine with a code, both
    standardised over the request's held-out texts. ``soft_gate`` makes a gate of the scores.

    Range        (-inf, inf), standard deviations; about 0 for texts of the request; higher = less
                 like them.
    Cost         ``views + 1`` forwards of each text; then ``epochs`` passes over codes in memory.
    Assumes      at least 8 texts; words with spaces or signs between them.
    Differs      from the paper: the encoder is a linear map of the model's own states in place of a
                 network of its own; a gate by two quantiles in place of a one-class machine.

    Parameters
    ----------
    width : int or None, default=32
        Number of features of the codes; None leaves the encoder out, and codes are standardised
        states.
    masked : float, default=0.3
        Share of the words that a view leaves out.
    views : int, default=8
        Views of each text that are read.
    temperature : float, default=0.3
        Divisor of the similarities, above 0.
    rate : float, default=0.003
        Learning rate of Adam.
    epochs : int, default=300
        Passes over the texts, each with two views drawn.
    seed : int, default=0
        Seed of the initial weights and of the order of texts.

    References
    ----------
    gao2025o3
    """

    width: int | None = 32
    masked: float = 0.3
    views: int = 8
    temperature: float = 0.3
    rate: float = 3e-3
    epochs: int = 300
    seed: int = 0
    paper: ClassVar[str] = "gao2025o3"

    def __post_init__(self) -> None:
        check_ranges(self, width=">= 0", temperature="> 0", rate="> 0", epochs="> 0")
        check_ranges(self, masked="(0, 1)", views=">= 2")

    def learn(
        self,
        model: Model | nn.Module,
        texts: Sequence[str],
        sites: Sites = "blocks",
        reducer: str | Reducer = "mean",
    ) -> RequestScorer:
        """Return the scorer of a request. The model is not changed.

        Parameters
        ----------
        model : Model or nn.Module
            With a tokenizer.
        texts : sequence of str
            Of the request.
        sites : pattern, Site, or several, default="blocks"
            Layers whose states are scored; they run before the site of the adapter.
        reducer : str or Reducer, default="mean"

        Raises
        ------
        InputError
            If there are fewer than 8 texts.
        """
        if len(texts) < LEAST_TEXTS:
            raise InputError(
                f"RequestDetector.learn: expected at least {LEAST_TEXTS} texts, got {len(texts)}."
            )
        draw = torch.Generator().manual_seed(self.seed)
        read = partial(layer_rows, model, sites=sites, reducer=reducer)
        whole = read(texts)
        held = torch.arange(len(texts)) % HELD == HELD - 1
        seen = [text for text, out in zip(texts, held.tolist(), strict=True) if not out]
        shown = []
        if self.width is not None:
            shown = [read([without_words(t, self.masked, draw) for t in seen])
                     for _ in range(self.views)]  # fmt: skip
        layers: list[RequestLayer] = []
        for i, rows in enumerate(whole):
            views = torch.stack([view[i] for view in shown]) if shown else None
            layers.append(self._layer(rows[~held].double(), rows[held].double(), views))
        return RequestScorer(tuple(layers))

    def _layer(self, rows: Tensor, held: Tensor, views: Tensor | None) -> RequestLayer:
        """Return the statistics of a layer: encoder, moments, text bank, and held-out scale."""
        spread, mean = rows.std(0, correction=0), rows.mean(0)
        encoder = torch.diag(1 / spread.clamp(min=1e-6 * float(spread.max()) + 1e-12))
        if views is not None:
            assert self.width is not None
            shown = ((views.double() - mean) @ encoder).float()
            contrast = contrastive_map(
                shown, self.width, self.temperature, self.rate, self.epochs, self.seed
            )
            encoder = encoder @ contrast.double()
        origin = mean @ encoder
        code = _code(rows, encoder, origin)
        centre = code.mean(0)
        root = inverse_root((code - centre).T @ (code - centre), len(code)).root
        unit = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        bare = RequestLayer(encoder, origin, centre, root, code, *unit).measured(held)
        scale = bare.std(0).clamp(min=1e-12)
        return RequestLayer(encoder, origin, centre, root, code, bare.mean(0), scale)


def layer_rows(
    model: Model | nn.Module,
    texts: Sequence[str],
    sites: Sites = "blocks",
    reducer: str | Reducer = "mean",
) -> list[Float[Tensor, "text _dim"]]:
    """Return a row for each text at each site, in the order of texts and sites.

    ``torch.cat(rows, 1)`` is what a ``RequestScorer`` scores and a gate of several sites reads.

    Parameters
    ----------
    model : Model | Module
        Model that is run; it is not changed.
    texts : Sequence[str]
        Texts to read.
    sites : str | Site | Sequence[str | Site], default="blocks"
        Sites that are read; ``blocks`` takes all blocks.
    reducer : str | Reducer, default="mean"
        Way in which the tokens of a text become a row.
    """
    live = as_model(model)
    inputs = open_inputs(live, [{"text": t, "id": str(i)} for i, t in enumerate(texts)])
    stream = live_stream(live, inputs, sites, reducer, logits=False)
    parts: dict[str, list[Tensor]] = {}
    places: list[int] = []
    for batch in stream:
        places += [int(name) for name in batch.ids]
        for key, rows in batch.rows.items():
            parts.setdefault(key, []).append(rows)
    order = torch.tensor(places).argsort()
    return [torch.cat(parts[str(site)])[order] for site in resolve(live.module, sites)]


def without_words(text: str, share: float, draw: torch.Generator) -> str:
    """Return a text without some random words and signs, but with at least one.

    Examples
    --------
    >>> without_words("def f(x): return x", 0.5, torch.Generator().manual_seed(0))
    'f: x'
    """
    pieces = PIECE.findall(text)
    kept = (torch.rand(len(pieces), generator=draw) >= share).tolist()
    joined = "".join(piece for piece, stays in zip(pieces, kept, strict=True) if stays)
    return joined.strip() or (pieces[0].strip() if pieces else text)


def contrastive_map(
    views: Float[Tensor, "view text dim"],
    width: int,
    temperature: float,
    rate: float,
    epochs: int,
    seed: int,
) -> Float[Tensor, "dim code"]:
    """Return a linear map that makes two views of a text more similar than other views."""
    dim = views.shape[2]
    with seeded(seed) as draw:
        learned = (torch.randn(dim, width, generator=draw) / dim**0.5).requires_grad_()

        def loss(_: int) -> Tensor:
            a, b = torch.randperm(len(views), generator=draw)[:2].tolist()
            return contrast(views[a] @ learned, views[b] @ learned, temperature)

        Descent("RequestDetector", [learned], rate).run(loss, range(epochs))
    return learned.detach()


def contrast(
    a: Float[Tensor, "text code"], b: Float[Tensor, "text code"], temperature: float
) -> Float[Tensor, ""]:
    """Return the cross-entropy of finding each text's other view among all views, in nats."""
    rows = normalize(torch.cat([a, b]), dim=1)
    alike = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(alike, torch.arange(len(rows), device=a.device).roll(len(a)))


def _code(x: Tensor, encoder: Tensor, origin: Tensor) -> Tensor:
    """Return the encoded rows, normalised to length 1."""
    return normalize(x @ encoder - origin, dim=1)
