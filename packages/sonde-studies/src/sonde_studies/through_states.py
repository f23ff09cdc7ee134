"""Speech in two stages: states of an encoder from letters, and the signal from these states.

The encoder and the second stage learn from recordings that nobody transcribed; the first stage
learns from few transcripts. The rival writes the signal from letters and learns from these alone.
"""

from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import VectorQuantizer
from sonde.train import InputDecoder, StateWriter
from sonde_studies._simulated_speech import (
    CHANNELS,
    FRAMES,
    LETTERS,
    WORDS,
    Texts,
    Voices,
    heard,
    manner,
)
from sonde_studies.arms import note_sum
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

KNOWN, MANY, NEW, REFERENCES = 4, 40, 8, 4
"""Speakers of transcripts, others of recordings without one, and those of neither; recordings of
each that show its manner."""
TRANSCRIBED, HEARD, HELD = 60, 600, 120
QUIET, LOUD = 0.3, 1.0
DIM, CODES, HIDDEN, WIDE = 32, 96, 40, 72
STEPS, TINY = {"encoder": 400, "decoder": 800, "writer": 300}, 3
ALL = slice(0, 2 * WORDS)
OWN, OTHER = slice(0, WORDS), slice(WORDS, 2 * WORDS)
RSQUARED = "R^2 of the signal without noise"


@final
class ThroughStatesStudy(Study):
    """Letters to signals by way of states, or at once."""

    name = "through-states"
    title = "does speech come nearer to the truth if it is written through hidden states?"
    paper = "siuzdak2022wavthruvec"
    fidelity = (
        "both stages are small, and frames stand for samples; the encoder foretells codes of "
        "hidden frames; durations are found by alignment"
    )
    data = (
        "simulated: six letters a text; 60 transcripts by four speakers, 600 recordings by these "
        "and 40 others without a transcript"
    )
    seconds = 20.0
    claims = (
        Claim("over direct", "New texts of known words and speakers are nearer to the truth "
              "through states, with 600 more rows that have no text, than at once.",
              f"{RSQUARED}, states less the better of two lengths of training at once",
              arms=("states", "direct")),
        Claim("speakers", "For speakers of whom four recordings alone are known, as rows without "
              "text, new texts are nearer to the truth through states; the second stage has read "
              "other rows than the rival.",
              f"{RSQUARED}, new speakers, states less direct", arms=("states", "direct")),
        Claim("words", "And for words that no transcript has, but some rows without text.",
              f"{RSQUARED}, new words, states less direct", arms=("states", "direct")),
        Claim("noise", "Noise in the transcribed rows costs less through states; rows without text "
              "keep their quality.",
              f"{RSQUARED}, lost by noise of the transcribed rows, direct less states",
              arms=("noisy states", "noisy direct")),
        Claim("noisy", "With noise in the transcribed rows, texts of known words and speakers are "
              "nearer to the truth through states, whose rows without text have less noise.",
              f"{RSQUARED}, noisy transcribed rows, states less direct",
              arms=("noisy states", "noisy direct")),
        Claim("encoder", "They are so too against states of an untrained encoder, with fewer "
              "updates and parameters.",
              f"{RSQUARED}, noisy transcribed rows, trained encoder less untrained",
              arms=("noisy states", "untrained encoder")),
        Claim("lasts", "Durations are found better along states, with more rows, than along the "
              "signal.", "R^2 of durations of letters, states less direct",
              arms=("states", "direct")),
        Claim("converted", "States of one speaker's recording, decoded in the manner of a new "
              "speaker, are nearer to what that one would say than to what was said.",
              "share of recordings, less 0.5"),
    )  # fmt: skip
    null = Claim("by lot", "With transcripts that are dealt by lot, what is written is as often "
                 "nearer to the signal of another text.",
                 "share nearer to its own, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder and a decoder on recordings, and writers on transcripts."""
        world, steps = World.of(seed), dict.fromkeys(STEPS, TINY) if tiny else STEPS
        tick("encoder")
        encoder = world.encoder(seed, steps["encoder"])
        tick("decoder")
        decoder = world.decoder(encoder, seed, steps["decoder"])
        found, lasts = dict[str, float](), dict[str, float]()
        for kind, noise in (("noisy ", LOUD), ("", QUIET)):
            tick(f"{kind}writer")
            writer = world.writer(seed, noise, steps["writer"], encoder)
            note_sum(f"{kind}states", of=("encoder", "decoder", f"{kind}writer"))
            if kind:
                tick("untrained encoder's decoder")
                plain = drawn(Encoder, seed).eval()
                second = world.decoder(plain, seed, steps["decoder"])
                tick("untrained encoder's writer")
                first = world.writer(seed, noise, steps["writer"], plain)
                parts = ("untrained encoder's decoder", "untrained encoder's writer")
                note_sum("untrained encoder", of=parts)
                judged = world.judged["known"]
                made = world.decoded(second, written(first, judged), judged)
                found["noisy states, untrained encoder"] = explained(made, *world.truth(judged))
            tick(f"{kind}direct")
            early = world.writer(seed, noise, steps["writer"])
            rest = steps["encoder"] + steps["decoder"]
            late = world.writer(seed + 50, noise, rest, start=early)
            for name, judged in world.judged.items():
                truth, real = world.truth(judged)
                made = world.decoded(decoder, written(writer, judged), judged)
                found[f"{kind}states, {name}"] = explained(made, truth, real)
                direct = [explained(written(net, judged), truth, real) for net in (early, late)]
                found[f"{kind}direct, {name}"] = max(direct)
                found[f"{kind}direct, {name}, after all updates"] = direct[1]
            for arm, nets in (("states", [writer]), ("direct", [early, late])):
                lasts[arm] = max(durations(net, world.judged["known"]) for net in nets)
        tick("read back")
        truth, real = world.truth(world.judged["known"])
        made = world.decoded(decoder, encoder.states(truth), world.judged["known"])
        found["states of the signal itself"] = explained(made, truth, real)
        tick("by lot")
        by_lot = world.writer(seed, QUIET, steps["writer"], encoder, lot=True)
        lead = {one: found[f"states, {one}"] - found[f"direct, {one}"] for one in world.judged}
        noisy = found["noisy states, known"] - found["noisy direct, known"]
        return {
            "over direct": lead["known"],
            "speakers": lead["speakers"],
            "words": lead["words"],
            "noise": noisy - lead["known"],
            "noisy": noisy,
            "encoder": found["noisy states, known"] - found["noisy states, untrained encoder"],
            "lasts": lasts["states"] - lasts["direct"],
            "converted": world.converted(encoder, decoder, seed) - 0.5,
            "by lot": nearer(world, by_lot, decoder, world.judged["known"]) - 0.5,
            **{f"R^2 | {name}": value for name, value in found.items()},
            **{f"R^2 of durations | {name}": value for name, value in lasts.items()},
        }


@dataclass(frozen=True)
class Judged:
    """Texts with their speakers.

    Parameters
    ----------
    texts : Texts
    speaker : Int[Tensor, "text"]
    """

    texts: Texts
    speaker: Tensor

    @property
    def symbols(self) -> Tensor:
        """Letters and the speaker in one number."""
        return self.texts.letters + LETTERS * self.speaker[:, None]


class Encoder(nn.Module):
    """Two convolutions over frames; its head names the code of frames, hidden ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(CHANNELS, 2 * DIM, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(2 * DIM, DIM, 3, padding=1),
        )
        self.head = nn.Linear(DIM, CODES)

    def forward(self, signal: Tensor) -> Tensor:
        """Return one state for each frame."""
        return self.layers(signal.mT).mT

    @torch.no_grad()
    def states(self, signal: Tensor) -> Tensor:
        """Return states without gradients."""
        return self(signal)


class Spoken(nn.Module):
    """Embeddings of letters plus a linear map of the speaker's manner."""

    def __init__(self, manners: Tensor, hidden: int) -> None:
        super().__init__()
        self.letters, self.manner = nn.Embedding(LETTERS, hidden), nn.Linear(2 * CHANNELS, hidden)
        self.register_buffer("manners", manners)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the embedding of letters that speakers say."""
        manners: Tensor = self.get_buffer("manners")
        return self.letters(symbols % LETTERS) + self.manner(manners[symbols // LETTERS])


@dataclass(frozen=True)
class World:
    """Voices, their manners, and the texts of each use.

    Parameters
    ----------
    voices : Voices
    manners : Float[Tensor, "speaker number"]
    transcribed, unwritten : Judged
        With transcripts by few speakers, and without by these and many others.
    judged : dict of str to Judged
        New texts of known words and speakers, by new speakers, and of new words.
    seed : int
    """

    voices: Voices
    manners: Tensor
    transcribed: Judged
    unwritten: Judged
    judged: dict[str, Judged]
    seed: int

    @classmethod
    def of(cls, seed: int) -> "World":
        """Return the world of a seed."""
        voices = Voices.of(seed, KNOWN + MANY + NEW)
        draw = torch.Generator().manual_seed(seed + 1)

        def some(n: int, words: slice, first: int, last: int, key: int) -> Judged:
            speaker = torch.randint(first, last, (n,), generator=draw)
            return Judged(voices.texts(n, words, 10 * seed + key), speaker)

        manners = list[Tensor]()
        for speaker in range(KNOWN + MANY + NEW):
            texts = voices.texts(REFERENCES, ALL, 1_000 * seed + 7 * speaker)
            signal, real = voices.said(texts, torch.full((REFERENCES,), speaker))
            manners.append(manner(heard(signal, real, QUIET, 1_000 * seed + speaker), real))
        return cls(
            voices,
            torch.stack(manners),
            some(TRANSCRIBED, OWN, 0, KNOWN, 1),
            some(HEARD, ALL, 0, KNOWN + MANY, 2),
            {
                "known": some(HELD, OWN, 0, KNOWN, 3),
                "speakers": some(HELD, OWN, KNOWN + MANY, KNOWN + MANY + NEW, 4),
                "words": some(HELD, OTHER, 0, KNOWN, 5),
            },
            seed,
        )

    def truth(self, judged: Judged) -> tuple[Tensor, Tensor]:
        """Return signals without noise, and which frames are real."""
        return self.voices.said(judged.texts, judged.speaker)

    def recorded(self, judged: Judged, noise: float, seed: int) -> Tensor:
        """Return signals with noise."""
        signal, real = self.truth(judged)
        return heard(signal, real, noise, seed)

    def encoder(self, seed: int, steps: int) -> Encoder:
        """Return an encoder that names codes of hidden frames of recordings without transcripts."""
        signal = self.recorded(self.unwritten, QUIET, seed + 2)
        real = self.truth(self.unwritten)[1]
        codes = codes_of(signal, real, seed)
        net = drawn(Encoder, seed)

        def loss(rows: Tensor) -> Tensor:
            x = signal[rows]
            noisy = x + LOUD * torch.rand(len(rows), 1, 1) * torch.randn(x.shape)
            shown = torch.rand(x.shape[:2]) > 0.2
            named = net.head(net(noisy * (shown & real[rows])[..., None]))
            return cross_entropy(named[real[rows]], codes[rows][real[rows]])

        minimise(loss, net.parameters(), HEARD, steps=steps, seed=seed)
        return net.eval()

    def decoder(self, encoder: Encoder, seed: int, steps: int) -> InputDecoder:
        """Return a decoder of states and manners of recordings without transcripts."""
        signal = self.recorded(self.unwritten, QUIET, seed + 3)
        real = self.truth(self.unwritten)[1]
        told = self.told(encoder.states(signal), self.unwritten)
        net = drawn(lambda: _read_once(InputDecoder(CHANNELS, (3 * DIM,)), told[0]), seed)
        minimise(lambda rows: net(told[rows][real[rows]], signal[rows][real[rows]]),
                 net.parameters(), HEARD, steps=steps, seed=seed, batch=32)  # fmt: skip
        return net.eval()

    def told(self, states: Tensor, judged: Judged) -> Tensor:
        """Return states with the manner of the speaker at each frame."""
        manners = self.manners[judged.speaker][:, None].expand(-1, states.shape[1], -1)
        return torch.cat([states, manners], 2)

    @torch.no_grad()
    def decoded(self, decoder: InputDecoder, states: Tensor, judged: Judged) -> Tensor:
        """Return the signals of states."""
        told = self.told(states, judged)
        return decoder.decode(told.flatten(0, 1)).reshape(*told.shape[:2], CHANNELS)

    def writer(
        self,
        seed: int,
        noise: float,
        steps: int,
        encoder: Encoder | None = None,
        lot: bool = False,
        start: StateWriter | None = None,
    ) -> StateWriter:
        """Return a writer that learned from transcripts, of states or, without encoder, of signals.

        Parameters
        ----------
        seed : int
        noise : float
            Of the transcribed recordings.
        steps : int
        encoder : Encoder, optional
        lot : bool, default=False
            Deal the transcripts by lot.
        start : StateWriter, optional
            Go on from a copy of this one.
        """
        judged = self.transcribed
        signal, real = self.recorded(judged, noise, self.seed + 4), self.truth(judged)[1]
        dim, hidden = (CHANNELS, WIDE) if encoder is None else (DIM, HIDDEN)
        target = signal if encoder is None else encoder.states(signal)
        symbols = judged.symbols
        if lot:
            symbols = Judged(self.voices.texts(TRANSCRIBED, OWN, 99 + seed), judged.speaker).symbols
        net = deepcopy(start) if start else drawn(lambda: self.new_writer(dim, hidden), seed)
        minimise(lambda rows: net(symbols[rows], target[rows], real[rows]), net.parameters(),
                 TRANSCRIBED, steps=steps, seed=seed, batch=16)  # fmt: skip
        return net.eval()

    def new_writer(self, dim: int, hidden: int) -> StateWriter:
        """Return a writer whose symbols are letters of speakers."""
        writer = StateWriter(LETTERS * len(self.manners), dim, hidden)
        writer.symbols = Spoken(self.manners, hidden)  # pyright: ignore
        return writer

    def converted(self, encoder: Encoder, decoder: InputDecoder, seed: int) -> float:
        """Return how often a decoded recording is nearer to the speaker whose manner was given."""
        source = self.judged["known"]
        aim = Judged(source.texts, self.judged["speakers"].speaker)
        states = encoder.states(self.recorded(source, QUIET, seed + 6))
        made = self.decoded(decoder, states, aim)
        apart = [distance(made, *self.truth(one)) for one in (aim, source)]
        return float((apart[0] < apart[1]).double().mean())


def codes_of(signal: Tensor, real: Tensor, seed: int) -> Tensor:
    """Return codes of frames, each recording taken at mean 0 and variance 1 in each channel."""
    n = real.sum(1)[:, None, None]
    mean = signal.sum(1, keepdim=True) / n
    centred = (signal - mean) * real[..., None]
    level = centred / (centred.square().sum(1, keepdim=True) / n).sqrt()
    quantiser = VectorQuantizer(CHANNELS, CODES, decay=0.9, seed=seed).train()
    with torch.no_grad():
        for _ in range(12):
            quantiser(level[real])
        return quantiser.eval().encode(level).reshape(real.shape)


@torch.no_grad()
def written(writer: StateWriter, judged: Judged) -> Tensor:
    """Return what a writer makes of letters that last as long as they truly do."""
    states, _ = writer.write(judged.symbols, judged.texts.lasts)
    return nn.functional.pad(states, (0, 0, 0, FRAMES - states.shape[1]))


@torch.no_grad()
def durations(writer: StateWriter, judged: Judged) -> float:
    """Return the share of the variance of true durations that a writer's explain."""
    lasts = judged.texts.lasts.double()
    wrong = (writer.moments(judged.symbols)[1].exp().double() - lasts).square().sum()
    return float(1 - wrong / (lasts - lasts.mean()).square().sum())


def distance(made: Tensor, truth: Tensor, real: Tensor) -> Tensor:
    """Return the squared error of each recording over its real frames."""
    return ((made - truth).square().sum(2) * real).sum(1)


def explained(made: Tensor, truth: Tensor, real: Tensor) -> float:
    """Return the share of the variance of real frames that is explained."""
    frames = truth[real].double()
    return float(
        1 - (made[real] - frames).square().sum() / (frames - frames.mean(0)).square().sum()
    )


def nearer(world: World, writer: StateWriter, decoder: InputDecoder, judged: Judged) -> float:
    """Return how often a written text is nearer to its own signal than to another's.

    Letters last two frames in all texts, so that durations tell nothing.
    """
    even = torch.full_like(judged.texts.lasts, 2)
    own = Judged(Texts(judged.texts.letters, even), judged.speaker)
    made = world.decoded(decoder, written(writer, own), own)
    near = distance(made, *world.truth(own))
    shares = list[float]()
    for shift in range(1, 11):
        other = Judged(Texts(judged.texts.letters.roll(shift, 0), even), judged.speaker)
        far = distance(made, *world.truth(other))
        shares.append(float((near < far).double().mean() + (near == far).double().mean() / 2))
    return fmean(shares)


def _read_once(net: InputDecoder, x: Tensor) -> InputDecoder:
    net.decode(x[:2])
    return net
