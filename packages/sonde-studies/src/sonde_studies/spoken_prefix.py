"""A small language model that goes on from simulated speech, through a projector of its states.

Texts are letters of drawn words. Speech is two noisy frames for each letter, in the manner of one
of six speakers; no transcript is given with it.
"""

import copy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import LearnedPrompt
from sonde.train import Scope
from sonde_studies._gpt2 import next_token_loss
from sonde_studies.arms import note_for
from sonde_studies.parts.heads import strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LETTERS, WORDS, LENGTHS, SPOKEN, WRITTEN = 12, 16, (3, 4, 5, 6), 8, 8
TEXTS, FIT, DIM, WIDTH, FRAMES, SPEAKERS = 900, 700, 32, 16, 2, 6
LEARNED, STEPS, TINY = 250, 200, 3


@final
class SpokenPrefixStudy(Study):
    """An aligned projector before a frozen model, and models that are tuned behind it."""

    name = "spoken-prefix"
    title = "can a frozen language model go on from aligned speech, and what does tuning cost?"
    paper = "song2025goattts"
    fidelity = "reconstructed: letters follow the speech, in place of tokens of generated speech"
    data = "simulated: 8 spoken and 8 written letters of 700 texts to train on, 200 to judge"
    seconds = 25.0
    claims = (
        Claim("aligned", "An aligned speech encoder and projector before the frozen model foretell "
              "the text better than a tuned top block behind a random projector, which has other "
              "parameters.", "nats a letter, top less aligned", arms=("aligned", "top")),
        Claim("heard", "Before the frozen model they foretell it better than no speech does.",
              "nats a letter, before training and without speech less aligned",
              arms=("aligned", "no speech")),
        Claim("keeps", "With the projector aligned, tuning the top block alone keeps more of what "
              "the model knew of texts than tuning all weights.",
              "nats a letter of texts, all less top behind the aligned projector",
              arms=("aligned top", "all")),
        Claim("timbre", "Continuous states tell the speaker better than the nearest of 24 codes.",
              "accuracy of the strongest probe of the speaker, states less codes",
              arms=("states", "codes")),
    )  # fmt: skip
    null = Claim("by lot", "Speakers dealt out by lot are told by chance.",
                 "accuracy of the strongest probe of the speaker, less 1/6")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a model of texts, then align speech to it and tune it in several ways."""
        text, speech, speaker = _spoken(seed)
        steps = TINY if tiny else STEPS
        tick("model of texts")
        base = drawn(_Net, seed)
        minimise(lambda rows: _of_texts(base, text[rows]), base.parameters(), FIT,
                 steps=TINY if tiny else LEARNED, seed=seed, batch=32)  # fmt: skip
        said, kept = dict[str, float](), dict[str, float]()
        nets = dict[str, _Net]()
        for arm, patterns in (
            ("aligned", ("hearing.*", "prompt.*")),
            ("top", ("blocks.1.*", "norm.*")),
            ("aligned top", ("blocks.1.*", "norm.*")),
            ("all", ("*",)),
        ):
            tick(arm)
            aligned = arm in ("aligned top", "all")
            nets[arm] = net = copy.deepcopy(nets["aligned"] if aligned else base)
            with Scope("pattern", patterns=patterns).on(net):
                minimise(lambda rows, net=net: _after(net, text[rows], speech[rows]),
                         [p for p in net.parameters() if p.requires_grad], FIT, steps=steps,
                         seed=seed, batch=32)  # fmt: skip
            with torch.no_grad():
                said[arm] = float(_after(net, text[FIT:], speech[FIT:]))
                kept[arm] = float(next_token_loss(net(text[FIT:]), text[FIT:]))
        tick("speakers")
        note_for("no speech", updates=0)
        for name in ("states", "codes"):
            note_for(name, rows=FIT)
        with torch.no_grad():
            alone = float(_after(base, text[FIT:], None))
            states = nets["aligned"].heard(speech)
        draw = torch.Generator().manual_seed(seed)
        lot = speaker[torch.randperm(TEXTS, generator=draw)]
        found = {
            "states": strongest_accuracy(states.mean(1), speaker, FIT),
            "codes": strongest_accuracy(_coded(states).mean(1), speaker, FIT),
            "lot": strongest_accuracy(states.mean(1), lot, FIT),
        }
        return {
            "aligned": said["top"] - said["aligned"],
            "heard": alone - said["aligned"],
            "keeps": kept["all"] - kept["aligned top"],
            "timbre": found["states"] - found["codes"],
            "by lot": found["lot"] - 1 / SPEAKERS,
            "said | no speech": alone,
            **{f"said | {arm}": value for arm, value in said.items()},
            **{f"texts | {arm}": value for arm, value in kept.items()},
            **{f"speaker | {name}": value for name, value in found.items()},
        }


class _Net(nn.Module):
    """A causal model of letters, a speech encoder, and the projector between them."""

    def __init__(self) -> None:
        super().__init__()
        long = FRAMES * SPOKEN + SPOKEN + WRITTEN
        self.letters, self.places = nn.Embedding(LETTERS, DIM), nn.Embedding(long, DIM)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, LETTERS)
        self.hearing = nn.Conv1d(WIDTH, DIM, 3, padding=1)
        self.prompt = LearnedPrompt(DIM, 0, source=DIM)

    def heard(self, speech: Tensor) -> Tensor:
        """Return the states of the speech encoder (text, frame, width)."""
        return self.hearing(speech.mT).relu().mT

    def forward(self, token: Tensor, speech: Tensor | None = None, start: int = 0) -> Tensor:
        """Return the logits at each letter, behind the speech if it is given."""
        x = self.letters(token)
        if speech is not None:
            x = self.prompt(x, states=self.heard(speech))
        n = x.shape[1]
        h = x + self.places(torch.arange(start, start + n))
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        for block in self.blocks:
            h = block(h, src_mask=later)
        return self.head(self.norm(h))[:, n - token.shape[1] :]


def _of_texts(net: _Net, text: Tensor) -> Tensor:
    """Return the nats a letter of whole texts, from a place that is drawn by chance."""
    start = int(torch.randint(FRAMES * SPOKEN + SPOKEN + WRITTEN - text.shape[1] + 1, ()))
    return next_token_loss(net(text, start=start), text)


def _after(net: _Net, text: Tensor, speech: Tensor | None) -> Tensor:
    """Return the nats a letter of what is written, behind the spoken letters' speech."""
    written = text[:, SPOKEN:]
    logits = net(written, speech, FRAMES * SPOKEN if speech is None else 0)
    return cross_entropy(logits[:, :-1].flatten(0, 1), written[:, 1:].flatten())


def _spoken(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return texts, the speech of their first letters, and the speakers.

    A text repeats two words in turn, so that what was spoken tells what is written.
    """
    draw = torch.Generator().manual_seed(seed)
    words = [torch.randint(LETTERS, (LENGTHS[i % len(LENGTHS)],), generator=draw)
             for i in range(WORDS)]  # fmt: skip
    texts = list[Tensor]()
    for pair in torch.randint(WORDS, (TEXTS, 2), generator=draw).tolist():
        texts.append(torch.cat([words[i] for i in pair] * 3)[: SPOKEN + WRITTEN])
    text, speaker = torch.stack(texts), torch.randint(SPEAKERS, (TEXTS,), generator=draw)
    sounds = torch.randn(LETTERS, FRAMES, WIDTH, generator=draw)
    manner = 0.15 * torch.randn(SPEAKERS, WIDTH, generator=draw)
    frames = sounds[text[:, :SPOKEN]].flatten(1, 2) + manner[speaker][:, None]
    return text, frames + 0.5 * torch.randn(frames.shape, generator=draw), speaker


def _coded(states: Tensor) -> Tensor:
    """Return each state as the nearest of 24 means of states, by ten rounds of k-means."""
    rows = states.flatten(0, 1)
    codes = rows[:: len(rows) // 24][:24].clone()
    for _ in range(10):
        near = torch.cdist(rows, codes).argmin(1)
        sums = torch.zeros_like(codes).index_add(0, near, rows)
        count = torch.bincount(near, minlength=24)[:, None]
        codes = torch.where(count > 0, sums / count.clamp(min=1), codes)
    return codes[torch.cdist(rows, codes).argmin(1)].reshape(states.shape)
