"""A pretrained encoder that learns new classes from few pictures, beside a slow copy of itself.

Digits of five classes pretrain it; the other five come in three sessions.
"""

import copy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sonde.layers import Adapter
from sonde.train import Align, Contrast, Scope
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

WIDTH, KNOWN, SESSIONS = 100, 5, ((3, 20), (1, 5), (1, 5))
"""Width, classes of the pretraining, and the new classes and rows of each in each session."""
PRETRAIN, STEPS, LATER, TINY, RATE, SLOWER = 300, 150, 20, 2, 3e-3, 0.1
DECAY, NOISE, SHARP = 0.99, 0.1, 0.1
ADAPTERS, OWN = ("2.*", "5.*"), ("3.*",)
"""Parameters that are added, and those of the pretrained encoder that are tuned beside them."""
ARMS = ("frozen", "labels", "contrast", "at full rate", "controlled", "pulled", "not pulled")
FIGURE = "accuracy over five new classes"


@final
class FewShotTuningStudy(Study):
    """An encoder of digits with adapters, tuned with labels, a contrast and a pull.

    Classes are told by the cosine to the mean state of their few rows. One of these rows is seen
    again in later sessions. The contrast takes the states of the encoder and of its slow copy,
    each with noise of its own, as rows whose positives share the class.
    """

    name = "few-shot-tuning"
    title = "what does a slow copy of the encoder add where new classes have few pictures?"
    paper = "roy2024coact"
    fidelity = "reconstructed; a perceptron that was pretrained on five digits, adapters in a row "
    fidelity += "in place of LoRA; decay, updates of later sessions and a kept row of each class "
    fidelity += "were chosen on seeds 100 and 101"
    data = "digits: all of five classes, then 20, 20, 20, 5 and 5 of the others; the rest judge"
    claims = (
        Claim("contrast", "A contrast with the states of a slow copy beside the labels tells new "
              "classes better than labels alone.", f"{FIGURE}, contrast less labels",
              arms=("contrast", "labels")),
        Claim("tuned", "It tells them better than the encoder that is not tuned.",
              f"{FIGURE}, contrast less frozen", arms=("contrast", "frozen")),
        Claim("controlled", "A pretrained layer that is tuned too, at a tenth of the rate, does "
              "better than at the full rate.", f"{FIGURE}, controlled less at full rate",
              arms=("controlled", "at full rate")),
        Claim("part", "It does better than adapters alone, with more parameters that move.",
              f"{FIGURE}, controlled less contrast", arms=("controlled", "contrast")),
        Claim("pull", "In later sessions, tuning with a pull to the slow copy does better than "
              "tuning without.", f"{FIGURE}, pulled less not pulled",
              arms=("pulled", "not pulled")),
        Claim("later", "It does better than no tuning in later sessions, by 40 updates more.",
              f"{FIGURE}, pulled less controlled", arms=("pulled", "controlled")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 f"{FIGURE} with a contrast, less 0.2")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Pretrain, and tune in each way."""
        x, label = shuffled_digits(seed)
        tick("pretraining")
        classes = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        encoder = pretrained(x, label, classes[:KNOWN], seed, TINY if tiny else PRETRAIN)
        found: dict[str, float] = {}
        for arm in ARMS:
            tick(arm)
            found[arm] = _accuracy(arm, encoder, x, label, classes[KNOWN:], seed, tiny)
        tick("labels by lot")
        return {
            "contrast": found["contrast"] - found["labels"],
            "tuned": found["contrast"] - found["frozen"],
            "controlled": found["controlled"] - found["at full rate"],
            "part": found["controlled"] - found["contrast"],
            "pull": found["pulled"] - found["not pulled"],
            "later": found["pulled"] - found["controlled"],
            "lots": by_lot(encoder, x, seed, tiny),
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


def by_lot(encoder: nn.Module, x: Tensor, seed: int, tiny: bool) -> float:
    """Return the accuracy on five classes by lot, less that of chance."""
    lots = labels_by_lot(x, 5, seed)
    return _accuracy("contrast", encoder, x, lots, torch.arange(5), seed, tiny) - 0.2


def _encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, WIDTH), nn.ReLU(), Adapter(WIDTH, 16),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), Adapter(WIDTH, 16),
    )  # fmt: skip


def pretrained(x: Tensor, label: Tensor, classes: Tensor, seed: int, steps: int) -> nn.Sequential:
    """Return an encoder that learned some classes; its adapters are as they start."""
    encoder = drawn(_encoder, seed)
    rows = torch.isin(label, classes)
    net = nn.Sequential(encoder, drawn(lambda: nn.Linear(WIDTH, 10), seed))
    with Scope("pattern", patterns=("0.0.*", "0.3.*", "1.*")).on(net):
        learn_labels(net, x[rows], label[rows], steps=steps, seed=seed)
    return encoder


def _accuracy(
    arm: str, encoder: nn.Module, x: Tensor, label: Tensor, classes: Tensor, seed: int, tiny: bool
) -> float:
    """Return the accuracy on the rows that were not learned, after all sessions."""
    net, new = copy.deepcopy(encoder), (classes == label[:, None]).float().argmax(1)
    is_new, means, kept = torch.isin(label, classes), list[Tensor](), list[Tensor]()
    is_learned = torch.zeros(len(x), dtype=torch.bool)
    slow = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    note(updates=0)
    first = 0
    for session, (n_classes, n) in enumerate(SESSIONS):
        own = [torch.nonzero(is_new & (new == c)).flatten()[:n]
               for c in range(first, first + n_classes)]  # fmt: skip
        rows = torch.cat(own)
        is_learned[rows] = True
        if session == 0 and arm != "frozen":
            _tune(net, slow, x[rows], new[rows], means, arm, seed, TINY if tiny else STEPS)
        if session and arm in ("pulled", "not pulled"):
            both = torch.cat([rows, torch.stack(kept)])
            _tune(net, slow, x[both], new[both], means, arm, seed + session,
                  TINY if tiny else LATER, is_later=True)  # fmt: skip
        with torch.no_grad():
            means += [normalize(net(x[some]), dim=1).mean(0) for some in own]
        kept += [some[0] for some in own]
        first += n_classes
    rest = is_new & ~is_learned
    with torch.no_grad():
        told = _scores(net(x[rest]), torch.stack(means)).argmax(1)
    return float((told == new[rest]).double().mean())


def _scores(states: Tensor, means: Tensor) -> Tensor:
    return normalize(states, dim=1) @ normalize(means, dim=1).T / SHARP


def _tune(
    net: nn.Module, slow: AveragedModel, x: Tensor, label: Tensor, means: list[Tensor], arm: str,
    seed: int, steps: int, is_later: bool = False,
) -> None:  # fmt: skip
    """Tune adapters, or a layer of the encoder as well, on a session's rows."""
    known, n = len(means), int(label.max()) + 1 - len(means)
    with torch.no_grad():
        states = net(x)
        start = torch.stack([states[label == known + c].mean(0) for c in range(n)])
    own = nn.Parameter(start, requires_grad=not is_later)
    tuned = ADAPTERS if arm in ("labels", "contrast") else (*ADAPTERS, *OWN)
    contrast, pull = Contrast(), Align()
    draw = torch.Generator().manual_seed(seed)
    note(rows=len(x))
    with Scope("pattern", patterns=tuned).on(net) as moving:
        parts = dict(net.named_parameters())
        slower = [parts[name] for name in moving.names if name.startswith("3.")]
        others = [parts[name] for name in moving.names if not name.startswith("3.")]
        share = 1.0 if arm == "at full rate" else SLOWER
        optimiser = torch.optim.Adam([{"params": [*others, own], "lr": RATE},
                                      {"params": slower, "lr": share * RATE}])  # fmt: skip
        for _ in range(steps):
            one, two = (x + NOISE * torch.randn(x.shape, generator=draw) for _ in range(2))
            states = net(one)
            loss = cross_entropy(_scores(states, torch.cat([*_stack(means), own])), label)
            with torch.no_grad():
                beside = slow(two)
            if arm != "labels" and not is_later:
                loss = loss + contrast(torch.cat([states, beside]), label=label.repeat(2))
            if arm == "pulled" and is_later:
                loss = loss + pull(states, beside)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            slow.update_parameters(net)


def _stack(means: list[Tensor]) -> list[Tensor]:
    return [torch.stack(means)] if means else []
