"""Simulated speech: letters that last for several frames, said by voices of their own."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LETTERS, IN_WORD, IN_TEXT, WORDS, CHANNELS, LONGEST = 12, 3, 6, 12, 24, 4
FRAMES = IN_TEXT * LONGEST
GLIDE, LONGER = 0.4, 0.3
"""Weight of the next letter at the end of one, and how often a letter lasts a frame longer."""


@dataclass(frozen=True)
class Texts:
    """Letters of texts, and how many frames each lasts.

    Parameters
    ----------
    letters, lasts : Int[Tensor, "text letter"]
    """

    letters: Int[Tensor, "text letter"]
    lasts: Int[Tensor, "text letter"]


@dataclass(frozen=True)
class Voices:
    """What letters sound like, and the gain and offset that each speaker gives each channel.

    Parameters
    ----------
    sounds : Float[Tensor, "letter channel"]
    gains, offsets : Float[Tensor, "speaker channel"]
    words : Int[Tensor, "word letter"]
        The first ``WORDS`` are those of transcripts, the others are new.
    durations : Int[Tensor, "letter"]
        Least frames of each letter.
    """

    sounds: Float[Tensor, "letter channel"]
    gains: Float[Tensor, "speaker channel"]
    offsets: Float[Tensor, "speaker channel"]
    words: Int[Tensor, "word letter"]
    durations: Int[Tensor, "letter"]

    @classmethod
    def of(cls, seed: int, speakers: int) -> "Voices":
        """Return the voices that a seed draws."""
        draw = torch.Generator().manual_seed(seed)
        every = torch.cartesian_prod(*[torch.arange(LETTERS)] * IN_WORD)
        return cls(
            torch.randn(LETTERS, CHANNELS, generator=draw),
            (0.4 * torch.randn(speakers, CHANNELS, generator=draw)).exp(),
            0.5 * torch.randn(speakers, CHANNELS, generator=draw),
            every[torch.randperm(len(every), generator=draw)[: 2 * WORDS]],
            torch.randint(1, LONGEST, (LETTERS,), generator=draw),
        )

    def texts(self, n: int, words: slice, seed: int) -> Texts:
        """Return texts of drawn words.

        Parameters
        ----------
        n : int
        words : slice
            The words to draw from.
        seed : int
        """
        draw = torch.Generator().manual_seed(seed)
        some = self.words[words]
        chosen = torch.randint(len(some), (n, IN_TEXT // IN_WORD), generator=draw)
        letters = some[chosen].flatten(1)
        longer = torch.rand(letters.shape, generator=draw) < LONGER
        return Texts(letters, self.durations[letters] + longer)

    def said(
        self, texts: Texts, speaker: Int[Tensor, "text"]
    ) -> tuple[Float[Tensor, "text frame channel"], Bool[Tensor, "text frame"]]:
        """Return the signal without noise, and which frames are not padding.

        Parameters
        ----------
        texts : Texts
        speaker : Int[Tensor, "text"]
        """
        ends = texts.lasts.cumsum(1)
        frame = torch.arange(FRAMES).expand(len(ends), -1).contiguous()
        owner = torch.searchsorted(ends, frame, right=True)
        real = owner < IN_TEXT
        owner = owner.clamp(max=IN_TEXT - 1)
        after = (owner + 1).clamp(max=IN_TEXT - 1)
        last = texts.lasts.gather(1, owner)
        place = (frame - (ends - texts.lasts).gather(1, owner) + 1) / last
        own, later = (self.sounds[texts.letters.gather(1, at)] for at in (owner, after))
        mixed = own + GLIDE * place[..., None] * (later - own)
        voiced = mixed * self.gains[speaker][:, None] + self.offsets[speaker][:, None]
        return voiced * real[..., None], real


def heard(
    signal: Float[Tensor, "text frame channel"],
    real: Bool[Tensor, "text frame"],
    noise: float,
    seed: int,
) -> Float[Tensor, "text frame channel"]:
    """Return a signal with noise on every frame that is not padding.

    Parameters
    ----------
    signal : Float[Tensor, "text frame channel"]
    real : Bool[Tensor, "text frame"]
    noise : float
        Standard deviation.
    seed : int
    """
    draw = torch.Generator().manual_seed(seed)
    return signal + noise * torch.randn(signal.shape, generator=draw) * real[..., None]


def manner(
    signal: Float[Tensor, "text frame channel"], real: Bool[Tensor, "text frame"]
) -> Float[Tensor, "number"]:
    """Return the mean and the logarithm of the deviation of each channel of a few recordings."""
    frames = signal[real]
    return torch.cat([frames.mean(0), frames.std(0).log()])
