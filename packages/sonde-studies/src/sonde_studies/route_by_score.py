"""Test whether a weak model can decide when a strong one should answer.

Digits: the weak model is linear and sees a quarter of the pixels, the strong one is a net with two
hidden layers that sees all. At this size both cost nothing: what is tried is the order in which
inputs are sent, not the time that is saved.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.layers import WeakAndStrong
from sonde.metrics import choose_settings
from sonde_studies._recipe_data import Part, items_of, learned, mlp, shuffled_digits
from sonde_studies.arms import Arms, arm, note_for, note_sum, part
from sonde_studies.recipes.route_by_score import route_by_score
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, TINY = 700, 250
SCORES = ("entropy", "margin", "states")


class _Unsure(nn.Module):
    """Another net's answers with an uninformative confidence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        chosen = nn.functional.one_hot(self.inner(x).argmax(1), 10).to(x.dtype) - 0.1
        return chosen * (2 + torch.sin(30 * (x @ torch.linspace(1, 2, x.shape[1]))))[:, None]


@final
class RouteByScoreStudy(Study):
    """A cascade of two digit classifiers, tested on rows that did not choose the threshold."""

    name = "route-by-score"
    title = "can a weak model's score say which inputs a strong model should answer?"
    fidelity = (
        "the published router serves a weak and a strong retrieval pipeline; here two classifiers, "
        "and the score goes to any router; the threshold is chosen on one half, judged on the other"
    )
    data = "digits: 700 to train on; 1,097 for the recipe, half of which choose the threshold"
    claims = (
        Claim(
            "above random",
            "Routing by the entropy of the weak model beats random routing over all shares.",
            "share of what routing by the answers gains over random routing",
            arms=("entropy", "random routing"),
        ),
        Claim(
            "kept",
            "A threshold that keeps 98 % of strong accuracy on one half keeps 97 % on the other, "
            "with the weak model's updates added.",
            "accuracy of the cascade over that of the strong model, less 0.97",
            arms=("cascade", "strong"),
        ),
        Claim(
            "saved",
            "The cascade then costs less than the strong model alone.",
            "1 less cost in strong answers, where a strong answer costs ten weak ones",
            premise="kept",
        ),
        Claim(
            "states",
            "A probe of the weak model's last states, fitted to labelled rows, finds more than "
            "the entropy of its answer.",
            "share found by the probe less that by the entropy",
            arms=("states", "entropy"),
        ),
        Claim("in turn", "Heads that are trained in turn, each on rows that are its own, are right "
              "more often.",
              "accuracy with three tenths sent, in turn less apart, equal updates of each head; "
              "in turn a step moves the parameters of one head",
              arms=("in turn", "apart")),
        Claim("confidence", "The evenness of the weak head's answer sends better rows than lot "
              "does.", "accuracy with three tenths sent, by confidence less by lot, in turn",
              arms=("in turn", "in turn, by lot")),
        Claim("objectives", "The cheapest setting that surely meets an accuracy of 0.85 on one "
              "half meets it on the other.", "accuracy on the other half less 0.85"),
        Claim("cheaper", "It costs less than the strong model alone.",
              "1 less the fraction of rows that are sent", premise="objectives"),
    )  # fmt: skip
    null = Claim(
        "noise",
        "A confidence that says nothing of the answer routes as random routing does.",
        "share of what routing by the answers gains over random routing",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both, run the recipe for each score, and once with random confidence."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        quarter = torch.arange(64).reshape(8, 8)[:4, 2:6].flatten()
        with part("weak"):
            weak = learned(Part(quarter, nn.Linear(16, 10)), x[:n], label[:n], seed)
        with part("strong"):
            strong = learned(mlp(64), x[:n], label[:n], seed)
        note_sum("cascade", ["weak", "strong"])
        items = items_of(x[FIT:], label[FIT:])
        tick("route")
        options = {"keep": 0.98, "seed": seed, "progress": False}
        found = {s: route_by_score(weak, strong, items, score=s, **options) for s in SCORES}
        for name in ("entropy", "random routing"):
            note_for(name, rows=0)
        note_for("states", rows=len(items) // 2)
        noise = route_by_score(Model(_Unsure(weak.module).eval()), strong, items, **options)
        tick("in turn")
        steps = 60 if tiny else 900
        heads, given = dict[str, tuple[float, float]](), Arms()
        for way, name in (("turn", "in turn"), ("apart", "apart")):
            with arm(given, name):
                heads[way] = _heads(way, x[:, quarter], label, seed, steps)
        note_for("in turn, by lot", **given.given["in turn"])
        met, sent = _chosen(weak, strong, x[FIT:], label[FIT:])
        first = found["entropy"]
        kept, cost = (float(first.facts[name]) for name in ("accuracy kept", "cost"))
        shown = {
            f"{s} | sent {r['sent']:.0%}": r["accuracy"] for s in SCORES for r in found[s].rows
        }
        return {
            "above random": float(first.value),
            "kept": kept - 0.97,
            "saved": 1 - cost / 10,
            "states": float(found["states"].value) - float(first.value),
            "in turn": heads["turn"][0] - heads["apart"][0],
            "confidence": heads["turn"][0] - heads["turn"][1],
            "objectives": met - 0.85,
            "cheaper": 1 - sent,
            "noise": float(noise.value),
            **{f"three tenths sent | {way}": v for way, (v, _) in heads.items()},
            **given.figures(),
            **{k: float(v) for k, v in shown.items() if k.endswith(("0%", "20%", "50%", "100%"))},
        }


def _chosen(weak: Model, strong: Model, x: Tensor, label: Tensor) -> tuple[float, float]:
    """Return accuracy and fraction sent, on one half, of the setting chosen on the other.

    A setting is the fraction of rows, by the weak model's entropy, that the strong model answers.
    """
    with torch.no_grad():
        says, knows = weak.module(x), strong.module(x).argmax(1) == label
    chance = says.softmax(1)
    doubt = -(chance * chance.clamp(min=1e-30).log()).sum(1)
    half = len(x) // 2
    cuts = doubt[:half].quantile(torch.linspace(1, 0, 11))
    sent = doubt >= cuts[:, None]
    sent[-1] = True  # the last setting sends all
    right = torch.where(sent, knows, says.argmax(1) == label)
    measured = {"accuracy": right[:, :half].double(), "cost": sent[:, :half].double()}
    found = choose_settings({k: v.numpy() for k, v in measured.items()}, "cost", {"accuracy": 0.85})
    at = found[0].setting
    at = len(sent) - 1 if at is None else at
    return float(right[at, half:].double().mean()), float(sent[at, half:].double().mean())


def _heads(way: str, x: Tensor, label: Tensor, seed: int, steps: int) -> tuple[float, float]:
    """Return the accuracy if the least confident 30 % go to the strong head, and at random.

    ``steps`` are the updates of each head: in turn, training takes twice as many.
    """
    pair = drawn(lambda: WeakAndStrong(x.shape[1], 10), seed)
    done = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if way == "turn":
            weak_moves = done // 50 % 2 == 0
            pair.weak.requires_grad_(weak_moves)
            pair.strong.requires_grad_(not weak_moves)
            return pair.loss(x[rows], label[rows])
        return cross_entropy(pair.weak(x[rows]), label[rows]) + cross_entropy(
            pair.strong(x[rows]), label[rows]
        )

    steps *= 2 if way == "turn" else 1
    minimise(loss, list(pair.parameters()), FIT, steps=steps, seed=seed)
    with torch.no_grad():
        weak, strong = (head(x[FIT:]).argmax(1) == label[FIT:] for head in (pair.weak, pair.strong))
        sure = pair.confidence(pair.weak(x[FIT:]))
    order = torch.rand(len(sure), generator=torch.Generator().manual_seed(seed))
    n = round(0.3 * len(sure))
    found: list[float] = []
    for score in (sure, order):
        sent = torch.zeros(len(sure), dtype=torch.bool)
        sent[score.argsort()[:n]] = True
        found.append(float(torch.where(sent, strong, weak).double().mean()))
    return found[0], found[1]
