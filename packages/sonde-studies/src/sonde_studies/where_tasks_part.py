"""Where two tasks, or the languages of one task, should part in a network.

Digits behind noise: name the digit, and restore the image. Digits in four languages of two
families: name the digit.
"""

from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from sonde_studies._forked_nets import (
    DEPTH,
    WIDTH,
    agreements,
    equal_width,
    judged,
    parting,
    similarities,
    trained,
)
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._routed_languages import routes
from sonde_studies.arms import note_again, note_mean, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, STEPS, TINY, NOISE, EARLY = 1_000, 200, 10, 0.3, 10
"""``EARLY``: gradients are compared after ``steps // EARLY`` steps, a tenth of the training."""


@final
class WhereTasksPartStudy(Study):
    """Five cuts of a net of four layers for two tasks; experts of languages by depth."""

    name = "where-tasks-part"
    title = "do gradients, similarity and routing say where tasks should part?"
    paper = "yu2020pcgrad"
    fidelity = "perceptrons; all cuts have as many parameters; languages differ in names or pixels"
    data = "digits with noise: 1,000 to train on and to measure, 797 to judge"
    claims = (
        Claim("deeper", "Gradients of the two tasks agree less in deeper layers.",
              "cosine at the first layer less that at the last",
              arms=("first layer", "last layer")),
        Claim("near", "A net cut below the layer of least agreement beats nets cut elsewhere.",
              "mean of accuracy and R2, less its mean over all cuts",
              arms=("cut of least agreement", "all cuts")),
        Claim("part", "It beats the shared net of as many parameters.",
              "mean of accuracy and R2, cut there less shared",
              arms=("cut of least agreement", "cut 4")),
        Claim("rises", "Similarity to the class rises with depth more in the net that names.",
              "CKA, rise from first to last layer: naming less restoring, whose head adds a "
              "quarter of the parameters",
              arms=("naming", "restoring")),
        Claim("falls", "In the net that restores it falls again after the middle layers.",
              "CKA with the class, second layer less last",
              arms=("restoring, second layer", "restoring, last layer")),
        Claim("curves", "A net cut where the similarity curves part beats nets cut elsewhere.",
              "mean of accuracy and R2, less its mean over all cuts",
              arms=("cut where curves part", "all cuts")),
        Claim("fork", "A fork where the similarity curves part beats the shared net of as many "
              "parameters.",
              "mean of accuracy and R2, forked there less shared",
              arms=("cut where curves part", "cut 4")),
        Claim("spread", "Learned routers part languages with names of their own in the last layer.",
              "routing divergence, bits, last layer less first",
              arms=("names: learned, last layer", "names: learned, first layer")),
        Claim("late", "Experts of languages in the last layer beat ones in the first.",
              "accuracy, last less first",
              arms=("names: late", "names: early")),
        Claim("everywhere", "Experts in the last layer beat experts in every layer.",
              "accuracy, last layer less all layers, which have twice the parameters",
              arms=("names: late", "names: everywhere")),
        Claim("families", "Experts of families, as many parameters, serve poor languages better.",
              "accuracy in languages of 100 rows, families less languages",
              arms=("names: families", "names: late")),
        Claim("mirror", "Where pixels differ, not names, routers part languages in the first.",
              "routing divergence, bits, first layer less last",
              arms=("pixels: learned, first layer", "pixels: learned, last layer")),
        Claim("early", "Where pixels differ, experts in the first layer beat ones in the last.",
              "accuracy, first less last",
              arms=("pixels: early", "pixels: late")),
        Claim("marks", "There routers part them more than languages that differ in nothing.",
              "routing divergence, bits, first layer: pixels less marks by lot",
              arms=("pixels: learned", "nothing: learned")),
        Claim("due", "The last layer gains more for names than for languages that do not differ.",
              "accuracy, last less first: names less marks by lot",
              arms=("names: late", "names: early")),
        Claim("due early", "The first layer gains more for pixels than for such languages.",
              "accuracy, first less last: pixels less marks by lot",
              arms=("pixels: early", "pixels: late")),
    )  # fmt: skip
    null = Claim("by lot", "A net that names labels by lot names none of other digits.",
                 "accuracy of the shared layers, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train every cut and every arm of experts, and compare what was measured."""
        x, digit = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        found = forks(x, digit, steps, seed, tick) | routes(x, digit, steps, seed, tick)
        tick("labels by lot")
        return found | {"by lot": by_lot(x, seed, steps)}


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a net of one task on labels by lot of other rows, less chance."""
    label = labels_by_lot(x, 10, seed)
    losses = {10: lambda said, rows: cross_entropy(said, label[rows])}
    net = trained(losses, lambda rows: x[rows], DEPTH, WIDTH, [10], n=FIT, steps=steps,
                  seed=seed, start=seed)  # fmt: skip
    with torch.no_grad():
        said = net(x[FIT:])[0].argmax(1)
    return float((said == label[FIT:]).double().mean()) - 0.1


def forks(x: Tensor, digit: Tensor, steps: int, seed: int, tick: Tick) -> dict[str, float]:
    """Train every cut; measure gradients of the shared net and similarities of single tasks."""
    draw, held = torch.Generator().manual_seed(seed), x[FIT:]
    seen = held + NOISE * torch.randn(held.shape, generator=draw)
    unit = x[:FIT].var(0, correction=0).mean()

    def noisy(rows: Tensor) -> Tensor:
        return x[rows] + NOISE * torch.randn(len(rows), x.shape[1])

    losses = {
        10: lambda said, rows: cross_entropy(said, digit[rows]),
        64: lambda said, rows: (said - x[rows]).square().mean() / unit,
    }
    make = partial(trained, losses, noisy, n=FIT, seed=seed)
    score = dict[int, tuple[float, float]]()
    for cut in range(DEPTH + 1):
        tick(f"cut {cut}")
        net = make(cut, equal_width(cut, [*losses]), [*losses], steps=steps, start=seed)
        score[cut] = judged(net, seen, digit[FIT:], held)
    tick("measure")
    with part("first layer"):
        young = make(DEPTH, WIDTH, [*losses], steps=max(1, steps // EARLY), start=seed)
    note_again("last layer", "first layer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agreement = agreements(young, noisy(torch.arange(FIT)), (digit[:FIT], x[:FIT]), unit)
        fit, truths = noisy(torch.arange(FIT)), (one_hot(digit[:FIT], 10), x[:FIT])
    single = dict[str, Any]()
    for name, n in (("naming", 10), ("restoring", 64)):
        with part(name):
            single[name] = make(DEPTH, WIDTH, [n], steps=steps, start=seed)
    for layer in ("second", "last"):
        note_again(f"restoring, {layer} layer", "restoring")
    curve = {
        name: [similarities(net, fit, truth) for truth in truths] for name, net in single.items()
    }
    rise = {name: of_class[-1] - of_class[0] for name, (of_class, _) in curve.items()}
    mean = {cut: sum(both) / 2 for cut, both in score.items()}
    middle = sum(mean.values()) / len(mean)
    least = min(range(DEPTH), key=lambda i: agreement[i])
    fork = parting(curve["naming"], curve["restoring"])
    note_again("cut of least agreement", f"cut {least}")
    note_again("cut where curves part", f"cut {fork}")
    note_mean("all cuts", [f"cut {cut}" for cut in score])
    return {
        "deeper": agreement[0] - agreement[-1],
        "near": mean[least] - middle,
        "part": mean[least] - mean[DEPTH],
        "rises": rise["naming"] - rise["restoring"],
        "falls": curve["restoring"][0][1] - curve["restoring"][0][-1],
        "curves": mean[fork] - middle,
        "fork": mean[fork] - mean[DEPTH],
        "cut of least agreement": least,
        "cut where curves part": fork,
        **{f"cut {c} | {k}": v for c, both in score.items()
           for k, v in zip(("accuracy", "R2"), both, strict=True)},
        **{f"layer {i + 1} | cosine": v for i, v in enumerate(agreement)},
        **{f"layer {i + 1} | {name}, {k}": v for name in ("naming", "restoring")
           for k, values in zip(("class", "pixels"), curve[name], strict=True)
           for i, v in enumerate(values)},
    }  # fmt: skip
