"""Detection of anomalies that a sentence defines, in videos of digits with labels of whole videos.

A video is a run of noisy digits. A sentence names three digits that are wrong. Training has clips
of one digit each; short events in long clips are judged, by sentences that training never had.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence

from sonde.layers import TargetHead
from sonde.metrics import auroc
from sonde.train import Contrast, splice_clips
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, FRAMES, DIM, NOISE, WRONG = 900, 16, 32, 0.3, 3
STEPS, TINY, BATCH, JUDGED, ASKED = 500, 4, 32, 60, 12
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("alarm for {} or {} or {}", "no {} and no {} and no {}", "{} {} and {} are wrong")
USUAL = "all else is usual"
WORDS = {word: i for i, word in enumerate(sorted({*" ".join((*FORMS, USUAL, *NAMES)).split()}))}
NULL_ARM = "another sentence"


@dataclass(frozen=True)
class _Arm:
    """Whether the sentence is given, whether events last for random times, and the contrast."""

    told: bool = True
    spliced: bool = True
    contrast: str = "mined"


ARMS = {
    "all": _Arm(),
    "no sentence": _Arm(told=False),
    "whole clips": _Arm(spliced=False),
    "all negatives": _Arm(contrast="all"),
    "no contrast": _Arm(contrast=""),
}


@final
class AnomalyInWordsStudy(Study):
    """Sentences, spliced events, and mined negatives, each left out in turn."""

    name = "anomaly-in-words"
    title = "can a sentence say what an anomaly is, and do splicing and mining help?"
    paper = "liu2025lagovad"
    fidelity = "reconstructed: a small recurrent encoder of words that is trained along"
    data = "digits: videos of 900 to train on, of 897 to judge; 12 sentences that are new"
    seconds = 35.0
    claims = (
        Claim("sentence", "Told by a new sentence, frames of anomalies are found better, by .3 of "
              "AUROC, than by a net that is told nothing, at equal updates.",
              "AUROC of frames, all less no sentence", above=0.3, arms=("all", "no sentence")),
        Claim("splice", "Events of random durations in training help to find short ones.",
              "AUROC of frames, all less whole clips", arms=("all", "whole clips")),
        Claim("mined", "The negatives that are most alike teach more than all negatives.",
              "AUROC of frames, all less all negatives", arms=("all", "all negatives")),
        Claim("contrast", "A contrast of events, texts and mined negatives, which reads the names "
              "of events as further labels, helps.",
              "AUROC of frames, all less no contrast", arms=("all", "no contrast")),
    )  # fmt: skip
    null = Claim("other", "The sentence of another question tells nothing on average.",
                 "AUROC of frames", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm, and ask it new sentences about the same videos."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        sets = torch.tensor(list(combinations(range(10), WRONG)))
        sets = sets[torch.randperm(len(sets), generator=draw)]
        found = dict[str, float]()
        for name, arm in ARMS.items():
            tick(name)
            net = _trained(arm, x[:FIT], label[:FIT], sets[ASKED:], seed, TINY if tiny else STEPS)
            found[name] = _judged(net, x[FIT:], label[FIT:], sets[:ASKED], seed)
            if name == "all":
                found[NULL_ARM] = _judged(net, x[FIT:], label[FIT:], sets[:ASKED], seed, turn=True)
        return {
            "sentence": found["all"] - found["no sentence"],
            "splice": found["all"] - found["whole clips"],
            "mined": found["all"] - found["all negatives"],
            "contrast": found["all"] - found["no contrast"],
            "other": found[NULL_ARM],
            **{f"AUROC of frames | {name}": value for name, value in found.items()},
        }


class SentenceDetector(nn.Module):
    """Frames and sentences in one space; a frame is scored by its cosines to two sentences.

    Parameters
    ----------
    told : bool
        False reads a fixed sentence in place of each definition.
    """

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.told, self.frames = told, mlp(64, 64, DIM)
        self.words = nn.Embedding(len(WORDS), DIM)
        self.reader = nn.GRU(DIM, DIM, batch_first=True)
        self.head = TargetHead(DIM, 2, temperature=0.1, project=False, local=True, top_tokens=2)

    def texts(self, texts: list[str]) -> Tensor:
        """Return a vector for each text (text, width)."""
        words = [self.words(torch.tensor([WORDS[w] for w in text.split()])) for text in texts]
        return self.reader(pack_sequence(words, enforce_sorted=False))[1][0]

    def definition(self, sentence: str) -> Tensor:
        """Return the vectors of what is usual and of what is wrong (2, width)."""
        return self.texts([USUAL, sentence if self.told else FORMS[0].split()[0]])

    def scores(self, clips: Tensor, sentence: str) -> Tensor:
        """Return how much nearer each frame is to what is wrong (clip, frame)."""
        maps = self.head.maps(self.frames(clips), self.definition(sentence))
        return maps[..., 1] - maps[..., 0]


def _trained(
    arm: _Arm, x: Tensor, label: Tensor, sets: Tensor, seed: int, steps: int
) -> SentenceDetector:
    net, draw = drawn(lambda: SentenceDetector(arm.told), seed), torch.Generator().manual_seed(seed)
    mined = Contrast(denominator="top_k", k=8, softness=10.0)
    contrast = {"mined": mined, "all": Contrast()}.get(arm.contrast)

    def loss(_: Tensor) -> Tensor:
        wrong = sets[torch.randint(len(sets), (), generator=draw)]
        usual = _others(wrong)
        own = usual[torch.randint(len(usual), (BATCH,), generator=draw)]
        kind = own.clone()
        kind[: BATCH // 2] = wrong[torch.randint(WRONG, (BATCH // 2,), generator=draw)]
        ground, event = _clips(x, label, own, draw), _clips(x, label, kind, draw)
        clips, inside = splice_clips(ground, event, (0.1 if arm.spliced else 1.0, 1.0), draw)
        target = (torch.arange(BATCH) < BATCH // 2).long()
        states, both = net.frames(clips), net.definition(_sentence(wrong, draw))
        value = cross_entropy(net.head(states, both), target)
        if contrast is None:
            return value
        share = inside / inside.sum(1, keepdim=True)
        events = torch.einsum("rf,rfd->rd", share, states)
        named = net.texts([f"no {name}" for name in NAMES])[kind]
        return value + 0.3 * contrast(
            torch.cat([events, named]), label=kind.repeat(2), negative=_grounds(states, inside)
        )

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net


def _grounds(states: Tensor, inside: Tensor) -> Tensor | None:
    """Return the states of anomalous videos' frames outside of the event; None without such."""
    outside = ~inside[: BATCH // 2]
    return states[: BATCH // 2][outside] if bool(outside.any()) else None


def _others(wrong: Tensor) -> Tensor:
    return torch.tensor([k for k in range(10) if k not in wrong.tolist()])


def _sentence(wrong: Tensor, draw: torch.Generator) -> str:
    order = wrong[torch.randperm(WRONG, generator=draw)].tolist()
    form = FORMS[int(torch.randint(len(FORMS), (), generator=draw))]
    return form.format(*(NAMES[k] for k in order))


def _clips(x: Tensor, label: Tensor, kind: Tensor, draw: torch.Generator) -> Tensor:
    """Return a clip of noisy digits of one class for each class asked for."""
    count, order = torch.bincount(label, minlength=10), label.argsort(stable=True)
    lot = torch.rand(len(kind), FRAMES, generator=draw)
    rows = order[(count.cumsum(0) - count)[kind, None] + (lot * count[kind, None]).long()]
    return x[rows] + NOISE * torch.randn(*rows.shape, 64, generator=draw)


@torch.no_grad()
def _judged(
    net: SentenceDetector, x: Tensor, label: Tensor, sets: Tensor, seed: int, *, turn: bool = False
) -> float:
    """Return the mean AUROC of frames of short events, by the sentence of each definition.

    ``turn`` asks the sentence of the next definition in its place.
    """
    draw, found = torch.Generator().manual_seed(seed + 999), list[float]()
    for i, wrong in enumerate(sets):
        usual = _others(wrong)
        own = usual[torch.randint(len(usual), (JUDGED,), generator=draw)]
        kind = wrong[torch.randint(WRONG, (JUDGED,), generator=draw)]
        ground, event = _clips(x, label, own, draw), _clips(x, label, kind, draw)
        clips, inside = splice_clips(ground, event, (0.05, 0.3), draw)
        told = _sentence(sets[(i + 1) % len(sets)] if turn else wrong, draw)
        score = net.scores(clips, told).flatten().numpy()
        found.append(float(auroc(score, inside.flatten().numpy(), resamples=2).value))
    return sum(found) / len(found)
