"""Texts of three sentences about persons, and compressors that restore them from a few numbers.

Every person has one usual city, boss and friend. One name in ten contradicts what is usual: these
are the planted names.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from sonde_studies.worlds.learning import drawn

PERSONS = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gia", "Hal")
NAMES = (
    ("Bergen", "Cairo", "Delhi", "Genoa", "Lagos", "Lima", "Oslo", "Tunis"),
    ("Abel", "Brun", "Cray", "Dorn", "Ekman", "Fuchs", "Grau", "Holm"),
    ("Iris", "Jon", "Kim", "Lea", "Max", "Nora", "Otto", "Pia"),
)
FORMS = (
    (("lives", "in"), ("comes", "from")),
    (("works", "for"), ("reports", "to")),
    (("plays", "with"), ("sits", "beside")),
)
STOP, BEGIN = ".", ""
WORDS = (
    BEGIN, STOP, *PERSONS, *(n for group in NAMES for n in group),
    *(w for forms in FORMS for form in forms for w in form),
)  # fmt: skip
SENTENCES, LENGTH, PLACE, USUAL = 3, 5, 3, 0.9
EMBED, MEMORY, BATCH, EVERY, CHECKED, RATE = 16, 32, 128, 4, 500, 0.023


@dataclass(frozen=True)
class NamedTexts:
    """Texts as numbers of words, and the names that are usual in them.

    Parameters
    ----------
    words : Int[Tensor, "text word"]
    usual : Int[Tensor, "text sentence"]
        The usual name of each sentence; it stands there unless a name is planted.
    """

    words: Int[Tensor, "text word"]
    usual: Int[Tensor, "text sentence"]

    @classmethod
    def drawn(
        cls, world: Int[Tensor, "person form"], n: int, draw: torch.Generator
    ) -> "NamedTexts":
        """Return texts about a world, which holds the number of each person's usual names."""
        shape = (n, SENTENCES)
        person, relation, form = (
            torch.randint(k, shape, generator=draw) for k in (len(PERSONS), len(FORMS), 2)
        )
        usual = world[person, relation]
        other = (usual + torch.randint(1, len(NAMES[0]), shape, generator=draw)) % len(NAMES[0])
        name = torch.where(torch.rand(shape, generator=draw) < USUAL, usual, other)
        first = WORDS.index(NAMES[0][0]) + len(NAMES[0]) * relation
        verb = WORDS.index(FORMS[0][0][0]) + 4 * relation + 2 * form
        stop = torch.full(shape, WORDS.index(STOP))
        parts = [WORDS.index(PERSONS[0]) + person, verb, verb + 1, first + name, stop]
        return cls(torch.stack(parts, -1).flatten(1), first + usual)

    @property
    def places(self) -> list[int]:
        """Places of the names in a text."""
        return [LENGTH * i + PLACE for i in range(SENTENCES)]

    def planted(self) -> list[dict[int, str]]:
        """Return, for each text, the places of planted names and the usual names there."""
        rows = zip(self.words[:, self.places].tolist(), self.usual.tolist(), strict=True)
        return [
            {place: WORDS[u] for place, w, u in zip(self.places, row, usual, strict=True) if w != u}
            for row, usual in rows
        ]


class TextCompressor(nn.Module):
    """Dense layers from a text to a memory, and a decoder that writes word after word.

    The decoder reads the memory, the place, and the words of the last sentence's length.

    Parameters
    ----------
    width : int
        Units of the encoder and of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), EMBED)
        self.encode = nn.Sequential(
            nn.Linear(SENTENCES * LENGTH * EMBED, width), nn.ReLU(), nn.Linear(width, MEMORY)
        )
        self.place = nn.Embedding(SENTENCES * LENGTH, width)
        self.recall, self.read = nn.Linear(MEMORY, width), nn.Linear(LENGTH * EMBED, width)
        self.write = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(WORDS))
        )

    def memory(self, words: Int[Tensor, "text word"]) -> Float[Tensor, "text slot"]:
        """Return what the compressor keeps of each text, from -1 to 1."""
        return self.encode(self.embed(words).flatten(1)).tanh()

    def forward(
        self, memory: Float[Tensor, "text slot"], written: Int[Tensor, "text word"]
    ) -> Float[Tensor, "text next token"]:
        """Return the log-probabilities of each word behind the written ones, and of the next."""
        n = min(written.shape[1] + 1, SENTENCES * LENGTH)
        begun = nn.functional.pad(written[:, : n - 1], (LENGTH, 0), value=WORDS.index(BEGIN))
        last = self.embed(begun).unfold(1, LENGTH, 1).flatten(2)
        state = self.recall(memory)[:, None] + self.read(last) + self.place.weight[:n]
        return self.write(state).log_softmax(-1)

    def loss(self, texts: NamedTexts) -> Tensor:
        """Return the negative log-likelihood of the texts, nats a text."""
        said = self(self.memory(texts.words), texts.words)
        return LENGTH * SENTENCES * nll_loss(said.flatten(0, 1), texts.words.flatten())

    @torch.no_grad()
    def restored(
        self, texts: NamedTexts
    ) -> tuple[Int[Tensor, "text word"], Float[Tensor, "text word"]]:
        """Return the likeliest words, written one after another, and their entropies in nats."""
        memory = self.memory(texts.words)
        written, entropy = texts.words[:, :0], list[Tensor]()
        for _ in range(SENTENCES * LENGTH):
            said = self(memory, written)[:, -1]
            entropy.append(-(said.exp() * said).sum(-1))
            written = torch.cat([written, said.argmax(-1, keepdim=True)], 1)
        return written, torch.stack(entropy, 1)


def as_words(texts: Int[Tensor, "text word"]) -> list[list[str]]:
    """Return the words of texts."""
    return [[WORDS[i] for i in row] for row in texts.tolist()]


@torch.enable_grad()
def trained_compressor(
    world: Int[Tensor, "person form"],
    width: int,
    seed: int,
    new: NamedTexts,
    loss: float,
    steps: int,
) -> tuple[TextCompressor, int]:
    """Return a compressor trained until new texts have a loss, and the number of steps."""
    net, draw = drawn(lambda: TextCompressor(width), seed), torch.Generator().manual_seed(seed)
    checked = NamedTexts(new.words[:CHECKED], new.usual[:CHECKED])
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE / math.sqrt(width))
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        net.loss(NamedTexts.drawn(world, BATCH, draw)).backward()
        optimiser.step()
        if step % EVERY == 0:
            with torch.no_grad():
                if float(net.loss(checked)) <= loss:
                    return net, step
    return net, steps
