"""Print how often recipes answer falsely where there is nothing.

Each row is one recipe on data of known truth, drawn anew (``--draws``, ``--first`` is the first
seed, words choose recipes, ``--drawn`` the worlds).
``nothing``: the fraction of false answers where nothing is to be found, at most 5 % wanted.
``planted``: the fraction of right answers where something is.

With ``--copies 4`` each row of the data that a recipe reads is there four times, with ``--ids``
under one id, with ``--persons`` as near copies of one group, with ``--unnamed`` as near copies
whose group is not stated. ``--people 60`` keeps the first 60 rows of each data set before they are
copied. Every recipe of the registry must have a world here, or the command ends with an error.
"""

import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from tools.figures._recipe_worlds import EYE, REPEATS, Drawn, ask, items_of, more_cases
from tools.figures._table import Row, Table, Words, head
from torch import Tensor, nn

from sonde import Model, load
from sonde.core.errors import InputError
from sonde_studies._planted import PatchAttention
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.choice import NOT_TOLD
from sonde_studies.recipes import RECIPES

GOOD = 0.05


class Lookup(nn.Module):
    """Answers row i with the i-th of some logits: the first column of the input is i."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Buffer(logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of rows (row, column)."""
        return self.logits[x[:, 0].long()]


def answering(right: Tensor, sure: Tensor, label: Tensor, n_classes: int = 4) -> Model:
    """Return a model that is right on given rows, and as sure as given."""
    said = torch.where(right, label, (label + 1) % n_classes)
    return Model(Lookup(nn.functional.one_hot(said, n_classes) * sure[:, None] - 0.5).eval())


def routed(seed: int, weak: float, strong: float, told: float, n: int = 400) -> str:
    """Return the verdict of route-by-score, where doubt tells so much of errors."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=random)
    doubt = torch.rand(n, generator=random)
    mixed = told * doubt + (1 - told) * torch.rand(n, generator=random)
    is_right = mixed <= mixed.quantile(weak)
    first = answering(is_right, 4 - 3 * doubt, label)
    second = answering(torch.rand(n, generator=random) < strong, torch.full((n,), 5.0), label)
    rows = torch.stack([torch.arange(n).float(), torch.ones(n)], 1)
    return ask("route-by-score", first, second, items_of(rows, label), seed=seed, keep=0.95).verdict


def trained(x: Tensor, label: Tensor, seed: int, steps: int = 120) -> nn.Sequential:
    """Return a small net that learned to classify rows, in batches drawn by the seed."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        rows = torch.randint(len(x), (200,))
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), label[rows]).backward()
        adam.step()
    return net.eval()


def audited(seed: int, how: str) -> str:
    """Return the verdict on a net trained anew without a digit, or silenced about it."""
    x, label = shuffled_digits(seed)
    own = label == seed % 10
    first = torch.arange(len(x)) < 1000
    before = trained(x[first], label[first], 10 * seed)
    rest = first & ~own
    golds = [Model(trained(x[rest], label[rest], 10 * seed + n)) for n in (1, 2)]
    after: Any = trained(x[rest], label[rest], 10 * seed + 3)
    if how == "silenced":
        after = deepcopy(before)
        after[4].bias.data[seed % 10] = -100.0
    parts = [items_of(x[~first & m], label[~first & m]) for m in (own, ~own)]
    options = {"gold": golds[0], "second_gold": golds[1] if how != "one gold" else None}
    return ask("unlearning-audit", Model(before), Model(after), *parts, **options).verdict


def copying(seed: int, n_copies: int = 0, n_leaks: int = 0) -> str:
    """Return the verdict on samples drawn like the other rows, from a curved sheet."""
    random = torch.Generator().manual_seed(seed)
    place = torch.randn(760, 3, generator=random) @ torch.randn(3, 11, generator=random)
    x = torch.tanh(place) + 0.02 * torch.randn(760, 11, generator=random)
    seen, held, samples = x[:300], x[300:600], x[600:]
    held = torch.cat([held, seen[:n_leaks]])
    samples = torch.cat([samples[n_copies:], seen[:n_copies]])
    parts = [[{"x": row} for row in part] for part in (samples, seen, held)]
    eye = Model(nn.Sequential(nn.Identity()).eval())
    return ask("replication-check", eye, *parts, site="0", seed=seed).verdict


def swapped(seed: int, damage: str, *, is_related: bool) -> str:
    """Return the verdict of stage-swap on nets of digits, the second damaged at one end."""
    x, label = shuffled_digits(seed)
    first = trained(x[:700], label[:700], 10 * seed)
    second: Any = deepcopy(first) if is_related else trained(x[:700], label[:700], 10 * seed + 1)
    if damage != "none":
        part = second[0] if damage == "front" else second[4]
        noise = torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(seed))
        part.weight.data += (1.5 if damage == "front" else 1.0) * part.weight.std() * noise
    models = [Model(net) for net in (first, second)]
    if seed % 2:
        models.reverse()
    items = items_of(x[700:], label[700:])
    return ask("stage-swap", *models, items, sites="2", seed=seed).verdict


def by_lot(seed: int, n: int = 160, dim: int = 8) -> tuple[Tensor, list[int]]:
    """Return rows, and labels of two uneven classes that say nothing of them."""
    random = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, generator=random) < 0.3).long()
    return torch.randn(n, dim, generator=random), label.tolist()


def viewed(seed: int) -> str:
    """Return the verdict of view-sets where one class is 0.3 of all, and no view tells it."""
    x, label = by_lot(seed, 240)
    rows = [{"view": r, "set": str(i // 3), "label": label[i // 3]} for i, r in enumerate(x)]
    return ask("view-sets", EYE, rows, seed=seed).verdict


def single_views(seed: int) -> str:
    """Return the verdict where all views of a thing are the same: more views say no more."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (90,), generator=random)
    x = torch.randn(90, 8, generator=random) + 1.2 * torch.eye(8)[label]
    rows = [{"view": x[i], "set": str(i), "label": int(label[i])} for i in range(90) for _ in "abc"]
    return ask("view-sets", EYE, rows, seed=seed).verdict


def fused(word: str, seed: int) -> str:
    """Return the verdict of a recipe of two encoders or views on labels by lot."""
    x, label = by_lot(seed)
    if word == "missing-view":
        rows = [
            {"first": a[:4], "second": a[4:], "label": c} for a, c in zip(x, label, strict=True)
        ]
        return ask(word, EYE, EYE, rows, seed=seed).verdict
    return ask(word, EYE, EYE, items_of(x, label), seed=seed).verdict


def worded(seed: int) -> str:
    """Return the verdict of perception-in-words where answers are by lot."""
    x, label = by_lot(seed)
    words, reader = ("import", "return"), load("sonde:stdlib", device="cpu")
    rows = [
        {"x": a, "word": words[int(a[0] > 0)], "question": "and again:", "label": words[c]}
        for a, c in zip(x, label, strict=True)
    ]
    return ask("perception-in-words", EYE, reader, rows, input_column="x", seed=seed).verdict


def changed(seed: int) -> str:
    """Return the verdict of change-pairs where the label says nothing of the pairs."""
    x, label = by_lot(seed)
    sides = zip(x, x.flip(0), label, strict=True)
    rows = [{"before": a, "after": b, "changed": str(c)} for a, b, c in sides]
    return ask("change-pairs", EYE, rows, seed=seed).verdict


class SaysAndLooks(nn.Module):
    """Answers what the first pixel says, and looks at patches by weights drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.net = PatchAttention()
        for parameter in self.net.parameters():
            parameter.data = 0.7 * torch.randn(parameter.shape, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of five classes."""
        said = (x[:, 0, 0, 0] * 10).round().long()
        return 5.0 * nn.functional.one_hot(said, 5) + 1e-3 * self.net(x)[:, :5]


def panelled(seed: int) -> str:
    """Return the verdict of class-panel where answers, looks and numbers of rows are by lot."""
    random = torch.Generator().manual_seed(seed)
    items, train = [], []
    for c, n in enumerate(torch.randperm(5, generator=random).tolist()):
        train += [{"label": c}] * (10 + 20 * n)
        share = torch.rand((), generator=random)
        for _ in range(10):
            x = torch.rand(1, 16, 8, generator=random)
            is_right = bool(torch.rand((), generator=random) < 0.3 + 0.7 * share)
            x[0, 0, 0] = (c if is_right else (c + 1) % 5) / 10
            top, left = (0.25 * int(torch.randint(0, 3, (), generator=random)) for _ in range(2))
            items.append({"x": x, "label": c, "box": [top, left, top + 0.5, left + 0.25]})
    return ask("class-panel", Model(SaysAndLooks(seed).eval()), items, train=train).verdict


def tuned_anew(seed: int, shift: float = 0.0) -> str:
    """Return the verdict of tune-norms on a plain Sequential: labels by lot, or a moved domain."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 3))
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(240, 6, generator=random)
    with torch.no_grad():
        label = net(x).argmax(1)
    by_lot = torch.randint(0, 3, (240,), generator=random)
    target = items_of(x + shift, label if shift else by_lot)
    model, how = Model(net.eval()), {"epochs": 6, "rate": 0.01, "seed": seed}
    return ask("tune-norms", model, target, items_of(x, label), **how).verdict


def retrieved(seed: int, *, shared: bool) -> str:
    """Return the verdict of document-retrieval where queries have nothing of their document.

    Their words are those of all documents, or of none.
    """
    random = torch.Generator().manual_seed(seed)
    letters = torch.randint(26, (60, 4), generator=random).tolist()
    words = ["".join(chr(97 + c) for c in word) for word in letters]
    chosen = torch.randint(30, (40, 8), generator=random).tolist()
    texts = [
        " ".join(words[w if shared or i < 20 else w + 30] for w in text)
        for i, text in enumerate(chosen)
    ]
    rows = [{"id": str(i % 20), "text": text} for i, text in enumerate(texts)]
    model = load("sonde:stdlib")
    return ask("document-retrieval", model, rows[:20], rows[20:], seed=seed).verdict


CHANNELS = nn.Conv2d(6, 6, 1, bias=False)
nn.init.dirac_(CHANNELS.weight)
MAPS = Model(nn.Sequential(CHANNELS, nn.Flatten(), nn.Linear(6 * 20, 2)).eval())
"""A net whose maps are its pictures."""


def mapped(seed: int) -> str:
    """Return the verdict of channel-regions where labels are by lot."""
    _, label = by_lot(seed)
    x = torch.randn(160, 6, 4, 5, generator=torch.Generator().manual_seed(seed))
    how = {"site": "0", "regions": 2, "steps": 60, "seed": seed}
    return ask("channel-regions", MAPS, items_of(x, label), **how).verdict


def cases() -> Iterator[tuple[str, str, str, Drawn]]:
    """Return recipe, what was drawn, ``nothing`` or ``planted``, and the draw."""
    word = "route-by-score"
    yield word, "strong .08, weak .92", "nothing", lambda s: routed(s, 0.92, 0.08, 0.8) == "route"
    yield (
        word,
        "both .8, doubt tells nothing",
        "nothing",
        lambda s: routed(s, 0.8, 0.8, 0) == "route",
    )
    yield (
        word,
        "strong .95, doubt tells nothing",
        "nothing",
        lambda s: routed(s, 0.8, 0.95, 0) == "route",
    )
    yield word, "strong .95, doubt tells", "planted", lambda s: routed(s, 0.8, 0.95, 0.8) == "route"
    word, bad = "unlearning-audit", ("only silent", "not forgotten")
    yield word, "trained anew, one gold", "nothing", lambda s: audited(s, "one gold") in bad
    yield word, "trained anew, two golds", "nothing", lambda s: audited(s, "two golds") in bad
    yield word, "answer turned off", "planted", lambda s: audited(s, "silenced") == "only silent"
    word, none = "replication-check", "no copies found"
    yield word, "no copies", "nothing", lambda s: copying(s) != none
    yield (
        word,
        "no copies, 10 of 310 held rows leak",
        "nothing",
        lambda s: copying(s, 0, 10) != none,
    )
    yield word, "12 of 160 copied", "planted", lambda s: copying(s, 12) == "copies"
    yield word, "12 copied, 10 leak", "planted", lambda s: copying(s, 12, 10) != none
    word = "stage-swap"
    for is_related, what in ((True, "one origin"), (False, "two seeds")):
        said = partial(swapped, is_related=is_related)
        if not is_related:
            yield word, what, "nothing", lambda s, f=said: f(s, "none").endswith("differs")
        for end in ("front", "back"):
            right = f"the {end} differs"
            yield (
                word,
                f"{what}, damaged {end}",
                "planted",
                (lambda s, f=said, e=end, r=right: f(s, e) == r),
            )
    for word in ("missing-view", "feature-fusion"):
        yield word, "labels by lot", "nothing", lambda s, w=word: fused(w, s) != NOT_TOLD
    yield "perception-in-words", "answers by lot", "nothing", lambda s: worded(s) != NOT_TOLD
    yield "view-sets", "labels by lot", "nothing", lambda s: viewed(s) != NOT_TOLD
    yield "view-sets", "views are equal", "nothing", lambda s: "views by" in single_views(s)
    yield "change-pairs", "labels by lot", "nothing", lambda s: changed(s) != "not told"
    yield "tune-norms", "labels by lot", "nothing", lambda s: tuned_anew(s) != "no gain"
    yield "tune-norms", "rows moved by 2", "planted", lambda s: tuned_anew(s, 2.0) != "no gain"
    yield "channel-regions", "labels by lot", "nothing", lambda s: mapped(s) != NOT_TOLD
    yield "class-panel", "all by lot", "nothing", lambda s: panelled(s) != "neither tells"
    word, told = "document-retrieval", "use BM25"
    yield word, "by lot", "nothing", lambda s: retrieved(s, shared=True) != told
    yield word, "no word is shared", "nothing", lambda s: retrieved(s, shared=False) != told
    yield from more_cases()


def _answered(drawn: Drawn, seed: int) -> bool | str:
    """Return the answer of a draw, or the message of the recipe that refuses its rows."""
    try:
        return drawn(seed)
    except InputError as error:
        return str(error)


def measure(arm: str, drawn: Drawn, seeds: range) -> list[str]:
    """Return the cells of a row of the table: answers, seconds of a draw, remarks."""
    began = time.process_time()
    tried = [_answered(drawn, seed) for seed in seeds]
    each = (time.process_time() - began) / len(tried)
    answers = [answer for answer in tried if not isinstance(answer, str)]
    rate = sum(answers) / max(len(answers), 1)
    remarks = ["<-- off"] if arm == "nothing" and rate > GOOD else []
    remarks += sorted({f"refused: {answer}" for answer in tried if isinstance(answer, str)})[:1]
    refused = f", {len(tried) - len(answers)} refused" if len(answers) < len(tried) else ""
    return [f"{sum(answers)} of {len(answers)}{refused}", f"{each:.2f}", " ".join(remarks)]


def table(
    words: Words = (),
    *,
    drawn: tuple[str, ...] = ("",),
    draws: int = 100,
    first: int = 0,
    copies: int = 1,
    ids: bool = False,
    persons: bool = False,
    unnamed: bool = False,
    people: int | None = None,
    arm: Literal["", "nothing", "planted"] = "",
) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Recipes whose names hold one of these words.
    drawn
        Parts of names of drawn worlds.
    draws
        Draws of each world.
    first
        The first seed.
    copies
        How often each row is there.
    ids
        Rows have ids, copies the same.
    persons
        Copies are near, of one group.
    unnamed
        Copies are near, without a group.
    people
        Number of rows that are kept of each data set.
    arm
        Only this arm.
    """
    if lacking := set(RECIPES) - {word for word, *_ in cases()}:
        yield f"recipes without a world: {', '.join(sorted(lacking))}"
        raise SystemExit(1)
    REPEATS.copies, REPEATS.has_ids, REPEATS.people = copies, ids, people
    REPEATS.is_person, REPEATS.is_named = persons or unnamed, not unnamed
    seeds = range(first, first + draws)
    yield head("recipe", "drawn", "arm", "answers", "seconds of a draw", "")
    for word, what, own, world in cases():
        is_chosen = not words or any(w in word for w in words)
        if is_chosen and any(part in what for part in drawn) and arm in own:
            yield Row((word, what, own), partial(measure, own, world, seeds))
