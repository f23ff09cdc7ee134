"""Worlds of known truth for the figure ``recipes``: drawn inputs, nets with drawn weights.

Each function draws a world by its seed, asks one recipe and returns its verdict. Sizes and
numbers of classes follow the seed, classes are uneven.
"""

import ast
import random
import string
import textwrap
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sonde import Model, load
from sonde.report import Answer
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.code_strip import functions_of
from sonde_studies.parts.choice import NOT_TOLD
from sonde_studies.recipes import recipe_of

Drawn = Callable[[int], bool]
"""Draw a world by its seed, ask the recipe, and return whether the answer was the one counted."""
EYE = Model(nn.Sequential(nn.Identity()).eval())
"""An encoder whose states are its inputs."""


@dataclass
class Repeats:
    """How often each row of the data of a world is there, and whether rows have ids.

    With ``is_person`` the copies are near copies of one group: a row is a person. Where rows belong
    to a clip, a set or a document, whole ones are copied and each is a person. The group is told
    unless ``is_named`` is false. ``people`` is how many rows of a data set are kept.
    """

    copies: int = 1
    has_ids: bool = False
    is_person: bool = False
    is_named: bool = True
    people: int | None = None

    def of(self, part: Any) -> Any:
        """Return the rows with their copies; models and other options unchanged."""
        if not (isinstance(part, list) and part and isinstance(part[0], dict)):
            return part
        rows: list[dict[str, Any]] = part[: self.people]
        unit = next((key for key in ("clip", "set", "id") if key in rows[0]), None)
        if self.has_ids:
            rows = [{"id": str(i)} | row for i, row in enumerate(rows)]
        if not self.is_person:
            return rows * self.copies
        draw, part = torch.Generator().manual_seed(len(rows)), next(PARTS)
        return [
            {key: _nearly(key, v, draw) for key, v in row.items()}
            | ({unit: f"{row[unit]}.{copy}"} if unit else {})
            | ({"group": f"{part}, {row[unit] if unit else i}"} if self.is_named else {})
            for i, row in enumerate(rows)
            for copy in range(self.copies)
        ]


def _nearly(key: str, value: Any, draw: torch.Generator) -> Any:
    """Return a value with a little noise; a text with some letters more at its end."""
    if isinstance(value, Tensor) and value.is_floating_point():
        noisy = value + 1e-3 * torch.rand(value.shape, generator=draw)
        return noisy.clamp(0, 1) if key == "image" else noisy
    if key == "text":
        letters = torch.randint(26, (3,), generator=draw).tolist()
        return f"{value} # {''.join(string.ascii_lowercase[i] for i in letters)}"
    return value


PARTS = count()
REPEATS = Repeats()
"""What ``ask`` does to the rows of every world."""


def ask(word: str, *parts: Any, **options: Any) -> Answer:
    """Return the answer of a recipe to a world whose rows are repeated as ``REPEATS`` says."""
    given = {name: REPEATS.of(value) for name, value in options.items()}
    return recipe_of(word)(*map(REPEATS.of, parts), progress=False, **given)


def items_of(x: Tensor, label: Any) -> list[dict[str, Any]]:
    """Return rows as labelled items."""
    return [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]


def drawn_label(n: int, n_classes: int, seed: int) -> Tensor:
    """Return labels by lot: class k is ``n_classes - k`` times as frequent as the last."""
    weight = torch.arange(n_classes, 0, -1).double()
    drawn = torch.Generator().manual_seed(10_000_000 + seed)
    return torch.multinomial(weight, n, replacement=True, generator=drawn)


def normal(seed: int, *size: int) -> Tensor:
    """Return normal numbers drawn by a seed."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def small_net(seed: int, *widths: int) -> nn.Sequential:
    """Return a net of linear layers and tanh with drawn weights."""
    torch.manual_seed(seed)
    layers = list[nn.Module]()
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).eval()


class Scrambled(nn.Module):
    """States that follow from the input and have no linear relation to it."""

    def __init__(self, dim: int, width: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(300 * normal(seed, dim, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of rows (row, dim)."""
        return torch.sin(x @ self.weight)


class TextByLot(nn.Module):
    """Gives each text a state of its own, unrelated to those of similar texts."""

    def __init__(self, seed: int, dim: int = 12) -> None:
        super().__init__()
        self.seed, self.dim, self.states = seed, dim, nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Return the states (text, token, dim)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        made = list[Tensor]()
        for ids, own in zip(input_ids, mask, strict=True):
            text = hash((self.seed, *ids[own > 0].tolist())) % 2**62
            made.append(normal(text, self.dim).expand(len(ids), self.dim))
        return self.states(self.scale * torch.stack(made))


class CountedBytes(nn.Module):
    """States that are drawn vectors of the bytes of a text, in any order."""

    def __init__(self, seed: int, dim: int = 12) -> None:
        super().__init__()
        self.states = nn.Embedding(256, dim, _weight=normal(seed, 256, dim))

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Return the states (text, token, dim)."""
        return self.states(input_ids)


def text_model(module: nn.Module) -> Model:
    """Return a model that reads bytes as the shipped one does, with another module."""
    return replace(_shipped(), module=module.eval())


@cache
def _shipped() -> Model:
    return load("sonde:stdlib")


def drawn_writer(seed: int) -> Model:
    """Return a small causal model of bytes with drawn weights."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    heads: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=256, initializer_range=0.3, **size, **heads)
    return text_model(LlamaForCausalLM(config))


def said(draw: random.Random, words: list[str], n: int) -> str:
    """Return a text of some words."""
    return " ".join(draw.choices(words, k=n))


def vocabulary(draw: random.Random, n: int, letters: str = string.ascii_lowercase) -> list[str]:
    """Return drawn words of three to six letters."""
    return ["".join(draw.choices(letters, k=draw.randint(3, 6))) for _ in range(n)]


def alternated(seed: int, what: str) -> str:
    """Return the verdict of alternating-fields, by what there is to learn."""
    n = 150 + 10 * (seed % 6)
    x, label = normal(seed, n, 6), drawn_label(n, 3, seed)
    if what == "by lot":
        net, how = small_net(seed, 6, 11, 3), {"epochs": 6, "rate": 0.02}
    else:
        label = (x[:, :3] + normal(seed + 1, n, 3)).argmax(1)
        net, how = small_net(seed, 6, 3), {"epochs": 14, "rate": 0.1}
        if what == "untrained":
            how = {"epochs": 2, "rate": 0.01}
        elif what == "curved":
            net = small_net(seed, 6, 16, 3)
            how = {"epochs": 12, "rate": 0.03}
    return ask("alternating-fields", Model(net), items_of(x, label), seed=seed, **how).verdict


@cache
def _pieces() -> list[str]:
    return [text for m in (random, ast, textwrap, string) for text in functions_of(m)]


def stripped(seed: int, module: Callable[[int], nn.Module]) -> str:
    """Return the verdict of code-strip on functions of the standard library."""
    pieces = random.Random(seed).sample(_pieces(), 22 + seed % 8)
    rows = [{"text": text} for text in pieces]
    return ask("code-strip", text_model(module(seed)), rows, site="states", seed=seed).verdict


def coded(seed: int, *, is_told: bool) -> str:
    """Return the verdict of codebook-bottleneck: factors by lot, or five groups of rows."""
    n = 120 + 20 * (seed % 4)
    x, label = normal(seed, n, 7), drawn_label(n, 5, seed)
    if is_told:
        label = torch.arange(n) % 5
        x = 0.3 * x + 3 * torch.eye(7)[label]
    other = drawn_label(n, 2, seed + 1)
    rows, factors = items_of(x, label), ["label"]
    if not is_told:
        rows = [row | {"second": int(c)} for row, c in zip(rows, other, strict=True)]
        factors.append("second")
    return ask("codebook-bottleneck", EYE, rows, factors=factors, site="0", seed=seed).verdict


def decoded(seed: int, *, is_left: bool) -> str:
    """Return the verdict of decode-states on scrambled inputs, or on a turn of them."""
    n = 80 + 15 * (seed % 5)
    first = nn.Linear(6, 9) if is_left else Scrambled(6, 9, seed)
    rows = [{"x": row} for row in normal(seed + 1, n, 6)]
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(9, 3)).eval()
    return ask("decode-states", Model(net), rows, sites="0", seed=seed).verdict


def defined(seed: int, gap: float = 0.0) -> str:
    """Return the verdict of defined-anomaly, where classes lie so far apart."""
    n, n_classes = 260 + 20 * (seed % 4), 5 + seed % 3
    label = drawn_label(n, n_classes, seed)
    x = normal(seed, n, 9) + gap * torch.eye(9)[label]
    return ask("defined-anomaly", EYE, items_of(x, label), site="0", seed=seed).verdict


def attacked(seed: int, what: str) -> str:
    """Return the verdict of did-it-memorise on a net that saw neither part, or the first."""
    sizes = 40 + 10 * (seed % 4), 75
    x, label = normal(seed, sum(sizes), 6), drawn_label(sum(sizes), 3, seed)
    parts = [items_of(v, c) for v, c in zip(x.split(sizes), label.split(sizes), strict=True)]
    net = small_net(seed, 6, 40, 3)
    if what == "memorised":
        net = _fitted(net, x[: sizes[0]], label[: sizes[0]])
    reference = Model(small_net(seed + 5, 6, 9, 3)) if what == "with a reference" else None
    return ask("did-it-memorise", Model(net), *parts, reference=reference).verdict


def _fitted(net: nn.Sequential, x: Tensor, label: Tensor, steps: int = 150) -> nn.Sequential:
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        adam.step()
    return net.eval()


def uneven_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return digits, three in four of them one digit, and whether each is that digit."""
    x, label = shuffled_digits(seed)
    own = label == seed % 10
    chosen = own | (torch.arange(len(x)) % 28 == 0)
    return x[chosen], own[chosen].long()


def handed(seed: int, what: str) -> str:
    """Return the verdict of family-of-models."""
    x, label = uneven_digits(seed)
    n = len(x) // 3
    large = _fitted(small_net(seed, 64, 24, 18, 2), x[:n], label[:n], 60)
    small: Any = deepcopy(large)
    if what == "by lot":
        label = label[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
        small = small_net(seed + 1, 64, 16, 18, 2)
    elif what == "scrambled":
        small = nn.Sequential(Scrambled(64, 20, seed), *small_net(seed + 1, 20, 18, 2)).eval()
        sites = "0,1"
    sites = "0,1" if what == "scrambled" else "1"
    items = items_of(x[n:], label[n:])
    models = Model(small), Model(large)
    return ask("family-of-models", *models, items, sites=sites, seed=seed).verdict


def federated(seed: int, *, is_told: bool) -> str:
    """Return the verdict of federated-bits on three clients of unequal size."""
    n = 200 + 20 * (seed % 4)
    x, label = normal(seed, n, 6), drawn_label(n, 3, seed)
    if is_told:
        label = (x[:, :3] + 0.3 * normal(seed + 1, n, 3)).argmax(1)
    client = drawn_label(n, 3, seed + 2)
    rows = [row | {"client": int(c)} for row, c in zip(items_of(x, label), client, strict=True)]
    how: dict[str, Any] = {"rounds": 8, "local_steps": 3, "rate": 0.5, "seed": seed}
    return ask("federated-bits", Model(small_net(seed, 6, 3)), rows, **how).verdict


def flowing(seed: int, *, is_apart: bool) -> str:
    """Return the verdict of per-user-flow, where users end words in ways of their own or alike."""
    draw = random.Random(seed)
    words, rows = vocabulary(draw, 30), list[dict[str, Any]]()
    for user, end in enumerate(("!!!!!!", " ;;;;;;", "......")):
        for _ in range(8 + draw.randrange(8)):
            own = draw.choices(words, k=6)
            text = " ".join(w + (end if is_apart else ".") for w in own)
            rows.append({"text": text, "user": user})
    model = text_model(CountedBytes(seed))
    return ask("per-user-flow", model, rows, epochs=0, seed=seed).verdict


def pictures(n: int, seed: int) -> list[Tensor]:
    """Return smooth noise; how channels are mixed differs a little from picture to picture."""
    draw = torch.Generator().manual_seed(seed)
    made = list[Tensor]()
    for _ in range(n):
        high, wide = 90 + 10 * int(torch.randint(4, (), generator=draw)), 128
        alike, smooth = 0.6 + 0.5 * torch.rand(2, generator=draw)
        x = alike * torch.randn(1, high, wide, generator=draw)
        x = x + 0.8 * torch.randn(3, high, wide, generator=draw)
        x = (1 - 0.3 * smooth) * nn.functional.avg_pool2d(x, 5, 1, 2) + 0.05 * x
        made.append((0.5 + x).clamp(0, 1))
    return made


def coloured(seed: int, *, is_changed: bool) -> str:
    """Return the verdict of recolour on questioned pictures, two of them recoloured or none."""
    fine, asked = pictures(20 + seed % 8, seed), pictures(6, seed + 500_000)
    if is_changed:
        mix = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.4, 0.5]])
        asked[:2] = [torch.einsum("cd,dhw->chw", mix, p) for p in asked[:2]]
    sides = [[{"image": p} for p in part] for part in (fine, asked)]
    return ask("recolour", sides[0], questioned=sides[1], seed=seed).verdict


def tracked(seed: int, kept: float) -> str:
    """Return the verdict of slots-over-time, where states say so much of the object."""
    draw = random.Random(seed)
    rows = list[dict[str, Any]]()
    for clip in range(10 + seed % 6):
        things = torch.randn(3, 6, generator=torch.Generator().manual_seed(100 * seed + clip))
        for frame in range(5 + draw.randrange(5)):
            noise = normal(draw.randrange(2**40), 3, 6)
            for k in range(3):
                if draw.random() < 0.85:
                    row = {"view": kept * things[k] + noise[k], "clip": clip, "frame": frame}
                    rows.append(row | {"object": k})
    draw.shuffle(rows)
    return ask("slots-over-time", EYE, rows, site="0", seed=seed).verdict


def ranked(seed: int, *, is_even: bool) -> str:
    """Return the verdict of tabular-attribution on a net that uses all columns alike, or not."""
    n_columns, n = 5 + seed % 4, 60 + 20 * (seed % 5)
    sign = (torch.arange(n_columns) % 2 * 2 - 1).float()
    net = nn.Linear(n_columns, 1)
    net.weight.data = (sign if is_even else sign * 1.6 ** torch.arange(n_columns))[None]
    rows = [{"x": row} for row in normal(seed, n, n_columns)]
    return ask("tabular-attribution", Model(net.eval()), rows, seed=seed).verdict


def paired(seed: int, *, is_one: bool) -> str:
    """Return the verdict of two-forms-of-a-fact on unrelated forms, or forms with noise."""
    n = 45 + 10 * (seed % 5)
    net = Model(small_net(seed, 6, 9, 8, 7, 6))
    first, second = normal(seed, n, 6), normal(seed + 1, n, 6)
    second = first + 0.1 * second if is_one else second
    rows = [{"first": a, "second": b} for a, b in zip(first, second, strict=True)]
    return ask("two-forms-of-a-fact", net, rows, sites="0,2,4,6", seed=seed).verdict


def generated(seed: int, *, is_other: bool) -> str:
    """Return the verdict of was-it-generated on texts of one law, or of two."""
    draw = random.Random(seed)
    words, others = vocabulary(draw, 40), vocabulary(draw, 40, string.ascii_uppercase)
    human = [{"text": said(draw, words, draw.randint(5, 9))} for _ in range(22 + seed % 9)]
    made = [
        {"text": said(draw, others if is_other else words, draw.randint(5, 9))} for _ in range(34)
    ]
    return ask("was-it-generated", drawn_writer(seed), human, made, seed=seed).verdict


def parted(seed: int, what: str) -> str:
    """Return the verdict of where-tasks-part on a task and its copy, by lot or not, or on two."""
    n = (160 + 32 * (seed % 4)) * (3 if what == "opposed" else 1)
    x = normal(seed, n, 5)
    first = drawn_label(n, 3, seed)
    if what != "by lot":
        first = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] > 0).long() + (x[:, 3] > 0.8).long()
    second = 2 - first
    if what == "opposed":
        second = (x[:, 4] * x[:, 3] - x[:, 0] > 0.2).long()
    rows = [
        {"x": v, "first": int(a), "second": int(b)}
        for v, a, b in zip(x, first, second, strict=True)
    ]
    net = small_net(seed, 5, 7, 6, 5, 5, 4)
    return ask("where-tasks-part", Model(net), rows, seed=seed).verdict


def unlearned(seed: int, of: str, *, has_gold: bool, is_silent: bool = False) -> str:
    """Return the verdict of unlearning-audit on rows, a person's rows or texts.

    The model after was trained anew without them, or it is the model before.
    """
    parts, train = _texts_to_forget(seed) if of == "texts" else _rows_to_forget(seed, of)
    both = [*parts["forget"], *parts["retain"]]
    before, anew, gold = (
        train(rows, 10 * seed + n)
        for n, rows in enumerate((both, parts["retain"], parts["retain"]))
    )
    after = before if is_silent else anew
    sides = parts["forget"], parts["retain"]
    options = {"held": parts["held"], "gold": gold if has_gold else None, "seed": seed}
    return ask("unlearning-audit", before, after, *sides, **options).verdict


Parts = dict[str, list[dict[str, Any]]]
Trained = Callable[[list[dict[str, Any]], int], Model]


def _rows_to_forget(seed: int, of: str) -> tuple[Parts, Trained]:
    """Return rows of persons who differ: rows of all persons, or all that are known of one.

    ``other persons``: the held-out rows are not of the person who is forgotten, but of one other;
    ``many persons``: of ten others, and rows say whose they are.
    """
    n_held = 10 if of == "many persons" else 1
    n_persons, dim = 5 + n_held, 10
    n = 40 + 10 * (seed % 4)
    person = torch.arange(n * n_persons) % n_persons
    own = normal(seed + 1, n_persons, dim) * (0.0 if of == "rows" else 1.0)
    x = normal(seed, len(person), dim) + own[person]
    score = x[:, :3] + normal(seed + 2, len(person), 3) + torch.tensor([0.5, 0.0, -0.5])
    rows = items_of(x, score.argmax(1))
    if of == "many persons":
        rows = [row | {"group": str(p)} for row, p in zip(rows, person.tolist(), strict=True)]
    if of == "rows":
        n_own = n + 15
        parts = {
            "forget": rows[:n_own],
            "held": rows[n_own : 2 * n_own],
            "retain": rows[2 * n_own :],
        }
    else:
        mine = [row for row, p in zip(rows, person.tolist(), strict=True) if p == 0]
        others = [row for row, p in zip(rows, person.tolist(), strict=True) if p > n_held]
        strange = [row for row, p in zip(rows, person.tolist(), strict=True) if 0 < p <= n_held]
        half = len(mine) // 2
        held = mine[half:] if of == "a person" else strange
        parts = {"forget": mine[:half], "held": held, "retain": others}

    def train(rows: list[dict[str, Any]], seed: int) -> Model:
        x, label = torch.stack([r["x"] for r in rows]), torch.tensor([r["label"] for r in rows])
        return Model(_fitted(small_net(seed, dim, 48, 3), x, label, 80))

    return parts, train


def _texts_to_forget(seed: int) -> tuple[Parts, Trained]:
    draw = random.Random(seed)
    words = vocabulary(draw, 25)
    rows = [{"text": said(draw, words, draw.randint(4, 7))} for _ in range(90 + 10 * (seed % 4))]
    parts = {"forget": rows[:25], "held": rows[25:55], "retain": rows[55:]}
    return parts, _trained_writer


def _trained_writer(rows: list[dict[str, Any]], seed: int, steps: int = 60) -> Model:
    """Return a causal model of bytes that learned some texts."""
    model = drawn_writer(seed)
    ids = nn.utils.rnn.pad_sequence(
        [torch.tensor(list(row["text"].encode())) for row in rows], batch_first=True
    )
    net: Any = model.module
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        adam.zero_grad()
        logits = net(input_ids=ids).logits[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0).backward()
        adam.step()
    net.eval()
    return model


def written(seed: int, what: str) -> str:
    """Return the verdict of who-wrote-it: writers by lot, or who differ in words or in more."""
    draw = random.Random(seed)
    shared, own = vocabulary(draw, 12), [vocabulary(draw, 3) for _ in range(3)]
    rows = list[dict[str, Any]]()
    for author in drawn_label(60 + 10 * (seed % 4), 3, seed).tolist():
        words = draw.choices(shared, k=8)
        if what == "words":
            words[2], words[5] = draw.choice(own[author]), draw.choice(own[author])
        end = ("!!", " ;", "...")[author] if what == "more" else "."
        pieces = [f"{a} {b}" for a, b in zip(words[::2], words[1::2], strict=True)]
        rows.append({"text": f"{end} ".join(pieces) + end, "author": author})
    return ask("who-wrote-it", drawn_writer(seed), rows, seed=seed).verdict


Case = tuple[str, str, str, Drawn]


def more_cases() -> Iterator[Case]:
    """Return recipe, what was drawn, ``nothing`` or ``planted``, and the draw."""
    yield from _trained_cases()
    yield from _read_cases()


def case(word: str, what: str, arm: str, f: Callable[[int], str], *good: str) -> Case:
    """Return a case whose answer is right if it is one of ``good``."""
    return word, what, arm, lambda s: (f(s) in good) == (arm == "planted")


def _trained_cases() -> Iterator[Case]:
    null, planted = "nothing", "planted"
    word = "alternating-fields"
    yield case(word, "labels by lot", null, partial(alternated, what="by lot"), NOT_TOLD)
    # few judging rows may not show that any arm tells the label: then no difference is claimed
    end = ("no difference", NOT_TOLD)
    yield case(word, "both at the optimum", null, partial(alternated, what="to its end"), *end)
    yield case(word, "curved", null, partial(alternated, what="curved"), *end)
    yield case(word, "few steps", planted, partial(alternated, what="untrained"), "at once")
    word, none = "code-strip", "none of them"
    yield case(word, "states by lot", null, partial(stripped, module=TextByLot), none)
    yield case(
        word, "bytes counted", planted, partial(stripped, module=CountedBytes), "mostly names"
    )
    word = "codebook-bottleneck"
    yield case(word, "factors by lot", null, partial(coded, is_told=False), "nothing to keep")
    yield case(word, "five groups", planted, partial(coded, is_told=True), "16 codes")
    word, none = "decode-states", "nothing is left at 0:out"
    yield case(word, "scrambled", null, partial(decoded, is_left=False), none)
    yield case(
        word, "inputs turned", planted, partial(decoded, is_left=True), "100% is left at 0:out"
    )
    word = "defined-anomaly"
    yield case(word, "labels by lot", null, defined, "it cannot")
    yield case(word, "classes apart", planted, partial(defined, gap=2.0), "it can")
    word = "did-it-memorise"
    for what in ("neither was seen", "with a reference"):
        yield case(word, what, null, partial(attacked, what=what), "not seen")
    yield case(word, "memorised", planted, partial(attacked, what="memorised"), "memorised")
    word = "family-of-models"
    yield case(word, "labels by lot", null, partial(handed, what="by lot"), NOT_TOLD)
    yield case(word, "front scrambles", null, partial(handed, what="scrambled"), "do not", NOT_TOLD)
    yield case(word, "a copy", planted, partial(handed, what="copy"), "hand over")
    word, bad = "unlearning-audit", ("not forgotten", "stands out by high losses")
    for of in ("rows", "a person", "other persons", "many persons", "texts"):
        for has_gold in (True, False):
            what = f"{of}, {'one gold' if has_gold else 'no gold'}"
            said = partial(unlearned, of=of, has_gold=has_gold)
            yield word, what, null, lambda s, f=said: f(s) in bad
            yield (
                word, f"{what}, still known", planted,
                lambda s, f=said: f(s, is_silent=True) == bad[0],
            )  # fmt: skip
    word = "federated-bits"
    yield case(word, "labels by lot", null, partial(federated, is_told=False), NOT_TOLD)
    yield word, "label is told", planted, lambda s: federated(s, is_told=True) != NOT_TOLD


def _read_cases() -> Iterator[Case]:
    null, planted = "nothing", "planted"
    word = "per-user-flow"
    yield case(word, "users far apart", null, partial(flowing, is_apart=True), "they cannot")
    mixed = partial(flowing, is_apart=False)
    yield case(word, "users alike", planted, mixed, "only behind labels")
    word = "recolour"
    yield case(word, "none recoloured", null, partial(coloured, is_changed=False), "cannot tell")
    yield case(word, "two of six", planted, partial(coloured, is_changed=True), "recoloured")
    word = "slots-over-time"
    yield case(word, "states by lot", null, partial(tracked, kept=0.0), "it does not")
    yield word, "states of objects", planted, lambda s: tracked(s, 1.0) != "it does not"
    word = "tabular-attribution"
    yield word, "columns alike", null, lambda s: ranked(s, is_even=True) == "trust it"
    yield case(word, "columns by size", planted, partial(ranked, is_even=False), "trust it")
    word = "two-forms-of-a-fact"
    yield case(word, "unrelated", null, partial(paired, is_one=False), "two facts")
    yield case(word, "noise", planted, partial(paired, is_one=True), "one fact")
    word = "was-it-generated"
    yield case(word, "one law", null, partial(generated, is_other=False), "cannot be told")
    yield case(word, "two laws", planted, partial(generated, is_other=True), "can be told")
    word = "where-tasks-part"
    yield case(word, "a task twice", null, partial(parted, what="twice"), "share all")
    yield case(word, "a task by lot twice", null, partial(parted, what="by lot"), "share all")
    yield word, "two tasks", planted, lambda s: parted(s, "opposed") != "share all"
    word = "who-wrote-it"
    yield case(word, "writers by lot", null, partial(written, what="by lot"), "not")
    words = "by more than words"
    yield word, "writers of words", null, lambda s: written(s, "words") == words
    yield case(word, "writers of more", planted, partial(written, what="more"), words)
