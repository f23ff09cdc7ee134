"""One random model with its data, as a module of Python source, and what is known of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools.fuzz.feeding import Feed, draw_feed
from tools.fuzz.layers import (
    LAYERS,
    attention,
    elementwise,
    encoder_layer,
    inplace,
    layer_norm,
    linear,
    view_kept,
)
from tools.fuzz.writing import DIM, FREE, MAYBE, POS, ROW, Axis, Book, Spot, Writer

N_CLASSES = 4
PARTS = Path(__file__).with_name("parts.py")
WITH_MASK = (elementwise, linear, layer_norm, attention, encoder_layer, inplace, view_kept)


@dataclass(frozen=True)
class Drawn:
    """A model that was drawn.

    Parameters
    ----------
    number : int
    source : str
        A module of Python: ``model()``, ``items()``, ``call(items)``, ``real(item)``.
    spots : tuple of Spot
    facts : frozenset of str
        ``random``: other numbers each time. ``reorders``: rows that leave are not those that came.
    blocks : tuple of str
        Modules that the residual stream passes in turn; empty if the model has no list of blocks.
    logits : Spot or None
        Where the logits are; None if the model gives no logits.
    masked : bool
    """

    number: int
    source: str
    spots: tuple[Spot, ...]
    facts: frozenset[str]
    blocks: tuple[str, ...]
    logits: Spot | None
    masked: bool
    elementwise: bool


def draw(seed: int, number: int) -> Drawn:
    """Return the model of a number."""
    rng = random.Random(f"{seed} {number}")
    book = Book(rng)
    feed = _patches(rng) if rng.random() < 0.12 else draw_feed(rng)
    w = Writer(book, feed.axes, mask=feed.mask)
    w.init += feed.init
    book.spots += [Spot(name, 0, "out", (), None, axes, own=True) for name, axes in feed.spots]
    w.lines += feed.opening
    if feed.n < 10:
        for _ in range(rng.choice((1, 2))):
            elementwise(w)
    elif w.words[1:] in ((FREE, DIM), (POS, DIM), (MAYBE, MAYBE)) and rng.random() < 0.45:
        _blocks(w)
    else:
        _several(w, rng.choice((2, 3, 4, 6)))
    if rng.random() < 0.06:
        book.facts.add("random")
        w.line("x = x + torch.rand_like(x)")
        elementwise(w)
    if rng.random() < 0.06:
        book.facts.add("reorders")
        w.line("x = x.flip(0)" if w.words[0] == ROW else "x = x.flip(1)")
        elementwise(w)
    returned, logits = _head(w)
    source = _module(number, feed, book.classes, w.source("Net", feed.parameters, returned))
    facts, spots = frozenset(book.facts), tuple(book.spots)
    known = (facts, tuple(book.blocks), logits, bool(feed.mask), feed.n < 10)
    return Drawn(number, source, spots, *known)


def _several(w: Writer, n: int) -> None:
    layers = [(weight, layer) for weight, layer in LAYERS if not w.mask or layer in WITH_MASK]
    weights = [weight for weight, _ in layers]
    written = 0
    while written < n:
        written += w.rng.choices(layers, weights)[0][1](w)
    if w.rng.random() < 0.2 and not w.path.count("."):
        _inner(w, w.rng.choice((1, 2, 3)))


def _inner(w: Writer, n: int) -> None:
    """Write a module of further layers."""
    name = w.name()
    inner = Writer(w.book, w.axes, w.full(name), w.mask)
    _several(inner, n)
    kind = f"Inner{name[1:]}"
    parameters = f"x, {w.mask}" if w.mask else "x"
    w.book.classes.append(inner.source(kind, parameters))
    w.init.append(f"self.{name} = {kind}()")
    call = "self.{name}(" + parameters + ")"
    w.layer("", inner.axes, call=call, name=name)


def _blocks(w: Writer) -> None:
    """Write a list of blocks around a residual stream, of one class or of several."""
    w.axes = (w.axes[0], replace(w.axes[1], word=POS if w.mask else FREE), Axis(DIM, w.size(2)))
    name, size, kinds = w.name(), w.size(2), []
    several = w.rng.random() < 0.4
    n = w.rng.choice((2, 3, 4))
    output = w.rng.choice(("x", "x", "x", "(x, None)", "{'states': x}", "States(x, 1)"))
    taken = {"x": "", "(x, None)": "[0]", "{'states': x}": "['states']"}.get(output, ".states")
    parameters = f"x, {w.mask}" if w.mask else "x"
    call = f"block({parameters}){taken}"
    start = len(w.book.spots)
    for i in range(n):
        kind = f"Block{i if several else ''}"
        inner = Writer(w.book, w.axes, w.full(f"{name}.{i}"), w.mask)
        if kind in kinds:
            w.book.spots += _again(w.book.spots[start:], w.full(f"{name}.0"), inner.path)
        else:
            w.book.n_names, before = 100 * (i + 1), w.book.n_names
            _residual(inner, size)
            w.book.n_names = before
            w.book.classes.append(inner.source(kind, parameters, output))
        kinds.append(kind)
        keys, key = {"x": ((), None), "(x, None)": ((0,), None)}.get(
            output, (("states" if "{" in output else ".states",), None)
        )
        w.book.spots.append(Spot(inner.path, 0, "in", (), None, w.axes))
        w.book.spots.append(Spot(inner.path, 0, "out", keys, key, w.axes))
        w.book.blocks.append(inner.path)
    made = ", ".join(f"{k}()" for k in kinds)
    w.init.append(f"self.{name} = nn.ModuleList([{made}])")
    w.lines += [f"for block in self.{name}:", f"    x = {call}"]


def _again(spots: Sequence[Spot], old: str, new: str) -> list[Spot]:
    """Return the spots inside a first block as those of another one of its class."""
    return [
        Spot(new + s.path.removeprefix(old), s.call, s.port, s.keys, s.key, s.axes, s.own)
        for s in spots
        if s.path.startswith(f"{old}.")
    ]


def _residual(w: Writer, size: int) -> None:
    w.lines.append("before = x.clone()" if w.rng.random() < 0.2 else "before = x")
    if w.rng.random() < 0.5:
        w.layer(f"nn.LayerNorm({size})")
    if w.rng.random() < 0.5:
        heads = 2 if size % 2 == 0 else 1
        mask = f", key_padding_mask=~{w.mask}" if w.mask else ""
        call = "self.{name}(x, x, x" + mask + ")"
        made = f"nn.MultiheadAttention({size}, {heads}, batch_first=True)"
        w.layer(made, call=call, keys=(0,), own=True)
    else:
        wide = w.rng.choice((size, 2 * size))
        w.layer(f"nn.Linear({size}, {wide}, bias=False)", w.featured(2, wide), own=True)
        w.layer(w.rng.choice(("nn.GELU()", "nn.ReLU(inplace=True)", "nn.Tanh()")))
        w.layer(f"nn.Linear({wide}, {size})", w.featured(2, size), own=True)
    w.line(w.rng.choice(("x = before + x", "x += before", "x = torch.add(x, before)")))


def _patches(rng: random.Random) -> Feed:
    """Return images as a sequence of patches, with class and register tokens somewhere."""
    side, width, cut = rng.choice((4, 8)), rng.choice((4, 6, 8)), 2
    n = (side // cut) ** 2
    before, after = rng.choice((0, 1, 1, 3)), rng.choice((0, 0, 1, 4))
    init = [
        f"self.cut = nn.Conv2d(3, {width}, {cut}, {cut})",
        f"self.head_tokens = nn.Parameter(torch.randn(1, {before}, {width}))",
        f"self.tail_tokens = nn.Parameter(torch.randn(1, {after}, {width}))",
    ]
    opening = (
        "x = self.cut(x).flatten(2).transpose(1, 2)",
        "head, tail = (t.expand(len(x), -1, -1) for t in (self.head_tokens, self.tail_tokens))",
        "x = torch.cat([head, x, tail], 1)",
    )
    total = before + n + after
    special = (*range(before), *range(before + n, total))
    axes = (Axis(ROW), Axis(FREE, total, special), Axis(DIM, width))
    item = f"torch.randn(3, {side}, {side}, generator=g)"
    map_axes = (Axis(ROW), Axis(DIM, width), Axis(FREE, side // cut), Axis(FREE, side // cut))
    call, spots = "(torch.stack(items),), {}", (("cut", map_axes),)
    return Feed("x", opening, axes, item, call, tuple(init), spots=spots)


def _head(w: Writer) -> tuple[str, Spot | None]:
    """Write a classifier's end and return what the forward returns, and where its logits are."""
    rows = next((i for i, word in enumerate(w.words) if word == ROW), None)
    if rows != 0 or w.rng.random() < 0.15:
        return "x", None
    dim = w.words.index(DIM if DIM in w.words else MAYBE)
    others = [i for i in range(1, len(w.axes)) if i != dim]
    if w.mask:
        w.lines.append(f"kept = {w.mask}[..., None]")
        w.lines.append("x = x.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)")
    elif others:
        w.lines.append(f"x = x.mean({tuple(others)})")
    w.axes = (w.axes[0], w.axes[dim])
    size = w.size(1)
    w.layer(f"nn.Linear({size}, {N_CLASSES})", (w.axes[0], Axis(DIM, N_CLASSES)), own=True)
    form, keys = w.rng.choice(
        (
            ("x", ()),
            ("x", ()),
            ("10 * x", ()),
            ("{'logits': x}", ("logits",)),
            ("(x, x.sum())", (0,)),
            ("torch.mul(x, 2, out=self.answers[: len(x)])", ()),
            ("torch.mul(x, 2, out=self.answers[: len(x)])", ()),
        )
    )
    if "answers" in form:
        shape = f"64, {N_CLASSES}"
        w.init.append(f"self.register_buffer('answers', torch.zeros({shape}), persistent=False)")
    return form, Spot("", 0, "out", keys, None, w.axes)


def _module(number: int, feed: Feed, classes: Sequence[str], net: str) -> str:
    parts = (
        PARTS.read_text(),
        *classes,
        net,
        f"def model():\n    torch.manual_seed({number})\n    return Net().eval()\n",
        f"def items():\n    g = torch.Generator().manual_seed({number})\n"
        f"    return [{feed.item} for i in range({feed.n})]\n",
        f"def call(items):\n    return {feed.call}\n",
        f"def real(i):\n    return {feed.real or None}\n",
    )
    return "\n\n".join(part.strip() + "\n" for part in parts)
