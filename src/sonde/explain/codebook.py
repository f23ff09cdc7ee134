"""A model whose states are averages of a few codebook entries, so that its features are discrete.

The model is trained further with the codes inside, so that it computes with what the codes stand
for. To explain a model as it is, take ``SparseAutoencoder``.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.engine.steps import Descent
from sonde.tap.hand.editing import editing
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.session import Session
from sonde.tap.model.sites import Pattern, resolve

FIRST_BATCHES, JUDGED = 8, 8
"""Batches that the first codes are the means of, and that losses are compared on."""
ROUNDS, MOST_ROWS = 10, 16384
RENEWED = 100
"""Steps after which codes that no row used start again at rows that are far from theirs."""


@final
@dataclass(frozen=True, eq=False)
class Codes(Edit):
    """Replace each row by the mean of its ``k`` nearest codes.

    Range        the shape and type of the activation.
    Cost         one product of rows and codes.
    Assumes      a model that was trained with these codes.

    Parameters
    ----------
    codes : Float[Tensor, "code dim"]
    k : int
    forced : int, optional
        A code that every row has: in place of its k-th nearest, or beside them where ``added``.
    added : bool, default=False
    blocked : tuple of int, default=()
        Codes that no row may have.
    strength : float, default=1.0
        Weight of the change.
    """

    codes: Float[Tensor, "code dim"]
    k: int
    forced: int | None = None
    added: bool = False
    blocked: tuple[int, ...] = ()
    strength: float = 1.0

    def chosen(self, rows: Float[Tensor, "*row dim"]) -> Int[Tensor, "*row k"]:
        """Return the indices of the nearest codes of each row, in order of distance.

        Raises
        ------
        ShapeError
            If rows have another width than the codes.
        """
        if rows.shape[-1] != self.codes.shape[1]:
            raise ShapeError(
                f"Codes.chosen: expected dim={self.codes.shape[1]} (as trained), got "
                f"dim={rows.shape[-1]}. Train a codebook for that site."
            )
        near = nearness(rows, self.codes.to(rows))
        near[..., list(self.blocked)] = -torch.inf
        return near.topk(self.k, dim=-1).indices

    def encode(self, rows: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row code"]:
        """Return a binary vector for each row, with 1 at its codes."""
        zero = rows.new_zeros(*rows.shape[:-1], len(self.codes))
        return zero.scatter(-1, self.chosen(rows), 1.0)

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the mean of the codes of each row."""
        if self.strength == 0.0:
            return x
        index = self.chosen(x)
        if self.forced is not None:
            code = torch.full_like(index[..., :1], self.forced)
            index = torch.cat([index if self.added else index[..., :-1], code], -1)
        quantised = self.codes.to(x)[index].mean(-2)
        return quantised if self.strength == 1.0 else torch.lerp(x, quantised, self.strength)

    def activate(self, code: int, how: Literal["replace", "add"] = "replace") -> "Codes":
        """Return the edit that puts a code in every row, as its k-th code or in addition."""
        if not 0 <= code < len(self.codes) or how not in ("replace", "add"):
            raise InputError(
                f"Codes.activate: expected a code from 0 to {len(self.codes) - 1} and replace or "
                f"add, got {code} and {how!r}."
            )
        return replace(self, forced=code, added=how == "add")

    def without(self, *codes: int) -> "Codes":
        """Return the edit that excludes some codes from all rows."""
        if len(self.codes) - len(set(codes)) < self.k or not all(
            0 <= c < len(self.codes) for c in codes
        ):
            raise InputError(
                f"Codes.without: expected codes from 0 to {len(self.codes) - 1} that leave "
                f"{self.k}, got {codes}."
            )
        return replace(self, blocked=codes)


@final
@dataclass(frozen=True, kw_only=True)
class CodebookResult(Result):
    """A model that was trained with codes. ``value`` is the increase of its loss in nats.

    ``module`` computes with the codes inside ``with result.active():``. ``codes`` holds them by
    site, ``usage`` the share of rows that have each, ``loss`` and ``loss_before`` are those of the
    model with codes and of the model that was given, on the same batches.
    """

    title: ClassVar[str] = "Fraction of rows with each code"
    module: nn.Module = field(repr=False)
    codes: Mapping[str, Codes]
    usage: Mapping[str, Float[Tensor, "code"]]
    loss: float
    loss_before: float

    @contextmanager
    def active(self, changed: Mapping[str, Codes] | None = None) -> Iterator[nn.Module]:
        """Run the model with its codes inside a ``with`` block.

        Parameters
        ----------
        changed : mapping of str to Codes, optional
            What acts at a site in place of its codes, such as ``codes[site].activate(3)``.
        """
        with ExitStack() as stack:
            for site, codes in {**self.codes, **(changed or {})}.items():
                stack.enter_context(editing(self.module, codes, site))
            yield self.module

    def table(self) -> Any:
        """Return a table of how often each code is used."""
        usage = torch.stack(list(self.usage.values()))
        return replace(self, value=usage, se=None, usage={}).table()


@final
@dataclass(frozen=True)
class Codebook:
    """Trains a model whose states at some sites are means of a few codes.

    The first codes are means of clusters of rows (Lloyd's rounds). Then all weights and codes
    descend on the model's own loss. Codes get the gradient of the state that they make; the layers
    before a site get the same gradient, as if the state were their own output. ``commitment`` times
    the squared distance of states and their codes, over the mean square of the states, is added to
    the loss: without it, states leave their codes behind and all rows end at few codes.

    Range        nats, the loss less that of the model as it was given; 0 = nothing is lost.
    Cost         ``steps`` steps of training, with a product of rows and codes at each site.
    Assumes      outputs of modules with units on the last axis. Trained by steps: it cannot merge.
    Differs      from the paper: one codebook for a site, not one for each head of an attention;
                 the nearest code by distance, not by inner product; ``commitment``.

    Parameters
    ----------
    n_codes : int, default=1024
        Number of codes of each site.
    k : int, default=8
        Codes of a row.
    rate : float, default=5e-4
        Learning rate of Adam.
    steps : int, default=1500
        Number of training steps.
    commitment : float, default=1.0
        Weight of the states' distance from their codes in the loss, at least 0.
    seed : int, default=0
        Seed of the first codes and of those that start again.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> label = torch.arange(64) % 2
    >>> x = torch.eye(4)[label]
    >>> found = Codebook(n_codes=2, k=1, rate=1e-2, steps=60).fit(
    ...     net, "0", lambda step: x, lambda out, x: nn.functional.cross_entropy(out, label)
    ... )
    >>> found.loss < 0.3, found.usage["0"].tolist()
    (True, [0.5, 0.5])

    References
    ----------
    tamkin2023codebook
    """

    n_codes: int = 1024
    k: int = 8
    rate: float = 5e-4
    steps: int = 1500
    commitment: float = 1.0
    seed: int = 0
    paper: ClassVar[str] = "tamkin2023codebook"

    def __post_init__(self) -> None:
        is_right = 1 <= self.k <= self.n_codes and min(self.steps, self.commitment) >= 0
        if not is_right or not self.rate > 0.0:
            raise InputError(
                "Codebook: expected k from 1 to n_codes, steps and commitment of at least 0 and a "
                f"rate above 0, got {self}."
            )

    def fit(
        self,
        model: Model | nn.Module,
        sites: Pattern | Sequence[Pattern],
        batch: Callable[[int], Any],
        loss: Callable[[Any, Any], Float[Tensor, ""]],
    ) -> CodebookResult:
        """Return a copy of the model, trained to compute with codes. The model itself is unchanged.

        Parameters
        ----------
        model : Model or nn.Module
        sites : pattern or several
            Outputs of modules.
        batch : callable
            Number of a step, from 0 on -> inputs, the one argument of the model. The codes start
            from the first 8; losses are compared on 8 after the last step.
        loss : callable
            Outputs and inputs -> the mean loss of a batch, in nats.

        Raises
        ------
        InputError
            If there are fewer rows than codes, a site is no output, or a loss is not finite.
        """
        given = model.module if isinstance(model, Model) else model
        module = copy.deepcopy(given)
        names = [self._name(site) for site in resolve(module, sites)]
        at = [ModuleNames(module).modules[name] for name in names]
        source = torch.Generator().manual_seed(self.seed)
        rows = _states_at(module, at, [batch(i) for i in range(FIRST_BATCHES)])
        books = [self._first(x, source).requires_grad_() for x in rows]
        later = [batch(self.steps + i) for i in range(JUDGED)]
        before = _mean_loss(given, later, loss)
        weights = [p for p in module.parameters() if p.requires_grad]
        descent = Descent("Codebook.fit", [*weights, *books], self.rate)
        used = [torch.zeros(self.n_codes) for _ in books]
        apart: list[Tensor] = []
        pairs = [
            (m, partial(self._quantised, book, seen, apart))
            for m, book, seen in zip(at, books, used, strict=True)
        ]

        def total(inputs: Any) -> Tensor:
            apart.clear()
            task = loss(module(inputs), inputs)
            return task + self.commitment * torch.stack(apart).sum()

        def renew(inputs: Any) -> None:
            if descent.n_steps % RENEWED == 0 and descent.n_steps + RENEWED <= self.steps:
                _renew(books, used, _states_at(module, at, [inputs]), source)

        with Session(module, pairs, reading=False, owner="Codebook"):
            descent.run(total, map(batch, range(self.steps)), renew)
            for seen in used:
                seen.zero_()
            after = _mean_loss(module, later, loss)
        return CodebookResult(
            value=after - before,
            n=int(sum(float(u.sum()) for u in used)) // (self.k * len(used)),
            unit="nats",
            direction="lower",
            conventions={"method": repr(self), "loss": "over 8 batches after the last step"},
            module=module,
            codes={n: Codes(b.detach().clone(), self.k) for n, b in zip(names, books, strict=True)},
            usage={n: u * self.k / u.sum() for n, u in zip(names, used, strict=True)},
            loss=after,
            loss_before=before,
        )

    def _name(self, site: Site) -> str:
        if site.port != "out" or site.key or not isinstance(site.call, int | None):
            raise InputError(f"Codebook.fit: expected the output of a module, got {site}.")
        return site.path

    def _first(self, rows: Tensor, source: torch.Generator) -> Tensor:
        """Return initial codes: the means of clusters of rows."""
        n = self.n_codes
        if len(rows) < n:
            raise InputError(
                f"Codebook.fit: expected at least a row for each of {n} codes in the first "
                f"{FIRST_BATCHES} batches, got {len(rows)}. Take fewer codes, or larger batches."
            )
        rows = rows[torch.randperm(len(rows), generator=source)[:MOST_ROWS]]
        codes = _spread(rows, n, source)
        for _ in range(ROUNDS):
            own = torch.cdist(rows, codes).argmin(1)
            count = torch.bincount(own, minlength=n)
            sums = torch.zeros_like(codes).index_add_(0, own, rows)
            codes = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], codes)
        return codes

    def _quantised(self, book: Tensor, used: Tensor, apart: list[Tensor], output: Any) -> Any:
        """Return an output with codes in place of states, with straight-through gradients."""
        x = find(output, None)
        if x is None or x.ndim > 3:
            raise InputError(
                "Codebook.fit: expected states of (row, dim) or (row, place, dim), got "
                f"{None if x is None else tuple(x.shape)}."
            )
        with torch.no_grad():
            index = nearness(x, book).topk(self.k, dim=-1).indices
            used += torch.bincount(index.flatten(), minlength=len(book))
        quantised = book[index].mean(-2)
        scale = x.detach().square().mean().clamp(min=1e-12)
        drawn = (x - quantised.detach()).square().mean() + (x.detach() - quantised).square().mean()
        apart.append(drawn / scale)
        return replaced(output, x, quantised + x - x.detach())


def nearness(rows: Float[Tensor, "*row dim"], codes: Float[Tensor, "code dim"]) -> Tensor:
    """Return the similarity of each code to the row; nearer codes have larger values."""
    return rows @ codes.T - codes.square().sum(1) / 2


def _spread(rows: Tensor, n: int, source: torch.Generator) -> Tensor:
    """Sample rows one by one, with probability proportional to the squared distance (k-means++)."""
    first = int(torch.randint(len(rows), (1,), generator=source))
    chosen, far = [first], (rows - rows[first]).square().sum(1)
    for _ in range(n - 1):
        free = far if bool(far.sum() > 0) else torch.ones_like(far)
        one = int(torch.multinomial(free, 1, generator=source))
        chosen.append(one)
        far = torch.minimum(far, (rows - rows[one]).square().sum(1))
    return rows[chosen].clone()


def _states_at(module: nn.Module, at: Sequence[nn.Module], batches: Sequence[Any]) -> list[Tensor]:
    """Return the rows at the outputs of modules."""
    seen: list[list[Tensor]] = [[] for _ in at]

    def note(parts: list[Tensor], output: Any) -> None:
        x = find(output, None)
        if x is not None:
            parts.append(x.detach().flatten(0, -2))

    pairs = [(m, partial(note, parts)) for m, parts in zip(at, seen, strict=True)]
    with Session(module, pairs, owner="Codebook"), torch.no_grad():
        for inputs in batches:
            module(inputs)
    return [torch.cat(parts) for parts in seen]


def _renew(
    books: Sequence[Tensor], used: Sequence[Tensor], rows: Sequence[Tensor], source: torch.Generator
) -> None:
    """Move codes that were not used since the last call to rows that are far from all codes."""
    with torch.no_grad():
        for book, seen, x in zip(books, used, rows, strict=True):
            dead = torch.nonzero(seen == 0).flatten()
            far = torch.cdist(x, book).amin(1).square() + 1e-12
            n = min(len(dead), len(x))
            book[dead[:n]] = x[torch.multinomial(far, n, generator=source)] if n else book[dead]
            seen.zero_()


def _mean_loss(
    module: nn.Module, batches: Sequence[Any], loss: Callable[[Any, Any], Tensor]
) -> float:
    with torch.no_grad():
        return sum(float(loss(module(inputs), inputs)) for inputs in batches) / len(batches)
