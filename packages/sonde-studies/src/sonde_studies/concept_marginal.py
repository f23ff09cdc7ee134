"""Classification by a sum over many noisy concepts, by one prompt, and by their mean.

A prompt stands for the text of a class: the mean state of a few of its digits, with noise. A small
model of images and texts gives banks of real texts, names that it read more or less often.
"""

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sonde.explain import ConceptMarginal
from sonde_studies._digits import encoder, shuffled
from sonde_studies._images_and_texts import NAMES, VIEWS, by_texts, shifted
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

N, CHOOSE, WIDTH, STEPS, CLIP_STEPS = 700, 200, 64, 150, 300
CLASSES, EACH, SHOTS = 10, 16, 5
NOISES = (0.5, 1.0, 2.0)
LOTS = 20


@final
class ConceptMarginalStudy(Study):
    """Hidden states of a digit net, classified by banks of noisy prompts.

    Noise is in root mean squares of a state's units; figures of claims are at the largest unless
    they say otherwise.
    """

    name = "concept-marginal"
    title = "does a sum over noisy concepts name the class better than one prompt?"
    paper = "chbr2024concepts"
    fidelity = (
        "the formulas are ours; means of states in place of texts, and names of one word; views "
        "are moved by half a pixel"
    )
    data = (
        "digits; 16 prompts of each class, means of five states with noise; a CLIP of one layer, "
        "trained here on 700 digits with eight names each, 30% of them of another digit"
    )
    claims = (
        Claim(
            "over the best",
            "The marginal, with 16 times the memory, is right more often than the prompt that is "
            "best on 200 labelled rows.",
            "difference of accuracies",
            arms=("marginal", "best prompt"),
        ),
        Claim(
            "over the mean",
            "A sum over concepts, in 16 times the memory, names the class more often than the "
            "mean of the same prompts.",
            "difference of accuracies",
            arms=("marginal", "mean of prompts"),
        ),
        Claim(
            "best text",
            "In a model of images and texts, with eight times the memory, more often than the "
            "name that is best on 200 rows.",
            "difference of accuracies",
            arms=("names", "best name"),
        ),
        Claim(
            "mean text",
            "And than the mean of the names, which takes an eighth of the memory.",
            "difference of accuracies",
            arms=("names", "mean of names"),
        ),
        Claim(
            "confidence",
            "Prompts with little noise, weighted by how well they match the row, name the class "
            "more often than as many prompts of equal weight.",
            "difference of accuracies, noise 0.5",
            arms=("confidence", "average"),
        ),
        Claim(
            "confidence in noise",
            "So do prompts with much noise.",
            "difference of accuracies",
            arms=("confidence", "average"),
        ),
        Claim(
            "views",
            "These name it more often if the match is averaged over eight augmented views, in nine "
            "times the forward passes.",
            "difference of accuracies",
            arms=("views", "confidence"),
        ),
        Claim(
            "confident names",
            "In the model of images and texts, names weighted by their match do better than the "
            "mean of the names.",
            "difference of accuracies",
            arms=("confident names", "average of names"),
        ),
        Claim(
            "views of names",
            "And so do names weighted by their match with nine views, in nine times the passes, "
            "than by that with the image alone.",
            "difference of accuracies",
            arms=("names over views", "confident names"),
        ),
    )
    null = Claim(
        "null", "Concepts put to classes by lot are right as often as chance.", "accuracy less 0.1"
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the encoder, draw the banks and classify test rows."""
        draw = torch.Generator().manual_seed(seed)
        x, label = shuffled(draw)
        tick("training")
        net = encoder(x[:N], label[:N], WIDTH, seed, 20 if tiny else STEPS)
        with torch.no_grad():
            mean = net[:2](x[:N]).mean(0)
            states = net[:2](x) - mean
        choose, new = slice(N, N + CHOOSE), slice(N + CHOOSE, None)
        rows, wanted = states[new], label[new]
        with torch.no_grad():
            views = net[:2](shifted(x[new])) - mean
        owner = torch.arange(CLASSES).repeat_interleave(EACH)
        plain, found = ConceptMarginal(), dict[str, float]()
        for noise in NOISES:
            bank = prompts(states[:N], label[:N], noise, draw)
            one = bank.view(CLASSES, EACH, -1).transpose(0, 1)
            single = torch.tensor([_right(rows @ normalize(p, dim=1).T, wanted) for p in one])
            chosen = [_right(states[choose] @ normalize(p, dim=1).T, label[choose]) for p in one]
            best = int(torch.tensor(chosen).argmax())
            found |= {
                f"marginal | noise {noise}": _accuracy(plain, rows, bank, owner, wanted),
                f"single prompts | noise {noise}": float(single.mean()),
                f"best prompt | noise {noise}": float(single[best]),
                f"mean of prompts | noise {noise}": _right(
                    rows @ normalize(one.mean(0), dim=1).T, wanted
                ),
            }
            for name, kind, seen in (
                ("average", ConceptMarginal(likelihood="average"), None),
                ("confidence", ConceptMarginal(likelihood="confidence"), None),
                ("views", ConceptMarginal(likelihood="confidence"), views),
                ("marginal over views", plain, views),
            ):
                found[f"{name} | noise {noise}"] = _accuracy(kind, rows, bank, owner, wanted, seen)
        tick("images and texts")
        texts = by_texts(x, label, N, CHOOSE, seed, 3 if tiny else CLIP_STEPS)
        bank = prompts(states[:N], label[:N], 1.0, draw)
        lots = [owner[torch.randperm(len(owner), generator=draw)] for _ in range(LOTS)]
        chance = [_accuracy(plain, rows, bank, lot, wanted) for lot in lots]
        _note_memory()
        low, high = (f"noise {noise}" for noise in (NOISES[0], NOISES[-1]))
        return {
            "over the best": found[f"marginal | {high}"] - found[f"best prompt | {high}"],
            "over the mean": found[f"marginal | {high}"] - found[f"mean of prompts | {high}"],
            "best text": texts["marginal"] - texts["best name"],
            "mean text": texts["marginal"] - texts["mean of names"],
            "confidence": found[f"confidence | {low}"] - found[f"average | {low}"],
            "confidence in noise": found[f"confidence | {high}"] - found[f"average | {high}"],
            "views": found[f"views | {high}"] - found[f"confidence | {high}"],
            "confident names": texts["confidence"] - texts["average"],
            "views of names": texts["views"] - texts["confidence"],
            "null": sum(chance) / LOTS - 1 / CLASSES,
            **found,
            **{f"{name} | texts": value for name, value in texts.items()},
        }


def _note_memory() -> None:
    """Note what each arm stores and reads; nothing is trained."""
    for name, rows_read, size in (
        ("marginal", 0, EACH), ("best prompt", CHOOSE, 1), ("mean of prompts", 0, 1),
        ("names", 0, NAMES), ("best name", CHOOSE, 1), ("mean of names", 0, 1),
    ):  # fmt: skip
        note_for(name, rows=rows_read, bytes=4 * WIDTH * CLASSES * size)
    for name, size, passes in (
        ("average", EACH, 1), ("confidence", EACH, 1), ("views", EACH, 1 + VIEWS),
        ("average of names", NAMES, 1), ("confident names", NAMES, 1),
        ("names over views", NAMES, 1 + VIEWS),
    ):  # fmt: skip
        note_for(name, rows=0, bytes=4 * WIDTH * CLASSES * size, passes=passes)


def prompts(states: Tensor, label: Tensor, noise: float, draw: torch.Generator) -> Tensor:
    """Return prompts of each class in turn: noisy means of a few states."""
    size = noise * states.square().mean().sqrt()
    own = [states[label == c] for c in range(CLASSES)]
    few = [x[torch.randint(len(x), (EACH, SHOTS), generator=draw)].mean(1) for x in own]
    bank = torch.cat(few)
    return bank + size * torch.randn(bank.shape, generator=draw)


def _right(scores: Tensor, wanted: Tensor) -> float:
    return float((scores.argmax(1) == wanted).double().mean())


def _accuracy(
    method: ConceptMarginal,
    rows: Tensor,
    bank: Tensor,
    owner: Tensor,
    wanted: Tensor,
    views: Tensor | None = None,
) -> float:
    return _right(method.fit(rows, bank, owner, views=views).value, wanted)
