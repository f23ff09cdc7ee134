"""False names that fit their context, chosen by a language model, on Python code of other people.

Names of functions stand for names of persons: each is replaced in a whole piece of a file.
"""

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from sonde import load
from sonde.data import rows_of
from sonde.store import Policy
from sonde_studies.arms import passes_of
from sonde_studies.study import Claim, Figures, Study, Tick

BYTES, PIECES, TINY, SHORTEST, TRIED = 220, 8, 3, 5, 8
WAYS = ("pseudonyms", "by lot", "fitting", "misplaced", "written")
WRITTEN, LONGEST, HEAT = 4, 14, 0.7
NAME = r"\[[0-9a-f]{12}\]|[A-Za-z_]+"


@final
class FalseNamesStudy(Study):
    """Pieces of 220 bytes with every name of five letters and more replaced, in five ways."""

    name = "false-names"
    title = "do false names that fit the context keep more of a text than pseudonyms?"
    paper = "deshmukh2023pii"
    fidelity = (
        "reconstructed: a causal model of bytes, which writes or chooses by what stands before"
    )
    data = "8 pieces of files of the standard library that the model has not learned; their names"
    place = "byte-model"
    claims = (
        Claim("rest", "With false names that fit, chosen by passes of the model, the rest of a "
              "text is predicted better than with random false names.",
              "nats a byte of all but the names, random less fitting",
              arms=("fitting", "by lot")),
        Claim("pseudonyms", "It is predicted better, at the cost of passes, than with "
              "pseudonyms.",
              "nats a byte of all but the names, pseudonyms less fitting",
              arms=("fitting", "pseudonyms")),
        Claim("written", "With names that the model writes itself, in more passes, the rest of "
              "the text is predicted better than with random names.",
              "nats a byte of all but the names, random less written",
              arms=("written", "by lot")),
        Claim("states", "The mean state of the text stays, at the cost of passes, nearer to that "
              "of the original text than with pseudonyms.",
              "cosine with the mean state before, fitting less pseudonyms",
              arms=("fitting", "pseudonyms")),
        Claim("states by lot", "It stays nearer, at the same cost, than with random false names.",
              "cosine with the mean state before, fitting less random",
              arms=("fitting", "by lot")),
    )  # fmt: skip
    null = Claim(
        "misplaced",
        "Names chosen to fit the context of another piece help no more than random names.",
        "nats a byte of all but the names, random less misplaced",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Replace names in pieces of files, and read the pieces again."""
        reader, draw = _Reader(), np.random.default_rng(seed)
        pieces, names = _pieces(TINY if tiny else PIECES, draw)
        nats, near = ({way: list[float]() for way in WAYS} for _ in range(2))
        for i, piece in enumerate(pieces):
            tick(f"piece {i}")
            own = _names(piece)
            pattern = r"\b(?:" + "|".join(map(re.escape, own)) + r")\b"
            key = int(draw.integers(2**62)).to_bytes(16, "big")
            options: dict[str, Any] = {"key": key, "tried": TRIED}
            options["candidates"] = tuple(sorted(names - {*own}))
            writer = reader.writer(int(draw.integers(2**31)))
            policies = {
                "pseudonyms": Policy((pattern,), key=key),
                "by lot": Policy((pattern,), **options),
                "fitting": Policy((pattern,), fits=reader.fits, **options),
                "misplaced": Policy(
                    (pattern,), fits=reader.misplaced(pieces[(i + 1) % len(pieces)]), **options
                ),
                "written": Policy((pattern,), key=key, candidates=writer, fits=reader.fits),
            }
            mean = reader.mean(piece)
            for way, policy in policies.items():
                with passes_of(way, reader.net):
                    text = policy.redacted(piece)
                nats[way].append(float(reader.nats(text)[_unchanged(piece, text, pattern)].mean()))
                near[way].append(float(cosine_similarity(mean, reader.mean(text), dim=0)))
        cost, cosine = ({way: float(np.mean(v)) for way, v in of.items()} for of in (nats, near))
        return {
            "rest": cost["by lot"] - cost["fitting"],
            "pseudonyms": cost["pseudonyms"] - cost["fitting"],
            "written": cost["by lot"] - cost["written"],
            "states": cosine["fitting"] - cosine["pseudonyms"],
            "states by lot": cosine["fitting"] - cosine["by lot"],
            "misplaced": cost["by lot"] - cost["misplaced"],
            **{f"nats a byte | {way}": value for way, value in cost.items()},
            **{f"cosine | {way}": value for way, value in cosine.items()},
        }


class _Reader:
    """The shipped model of bytes: nats of each byte, and mean states."""

    def __init__(self) -> None:
        self.net: Any = load("sonde:stdlib", device="cpu").module

    @torch.no_grad()
    def nats(self, text: str) -> Tensor:
        """Return the nats of each byte; the first byte has none."""
        ids = torch.tensor([list(text.encode())])
        log_p = self.net(ids).logits[0, :-1].log_softmax(-1)
        return torch.cat([torch.tensor([torch.nan]), -log_p.gather(1, ids[0, 1:, None])[:, 0]])

    @torch.no_grad()
    def mean(self, text: str) -> Tensor:
        """Return the mean of the last states."""
        states = self.net(torch.tensor([list(text.encode())]), output_hidden_states=True)
        return states.hidden_states[-1][0].mean(0)

    @torch.no_grad()
    def fits(self, before: str, candidates: Sequence[str], after: str) -> list[float]:
        """Return the mean log-probability of each candidate's bytes after the text before."""
        del after
        start = list((before or "\n").encode())
        rows = [torch.tensor(start + list(name.encode())) for name in candidates]
        ids = pad_sequence(rows, batch_first=True)
        log_p = self.net(ids).logits[:, len(start) - 1 : -1].log_softmax(-1)
        each = log_p.gather(2, ids[:, len(start) :, None])[:, :, 0]
        return [
            float(own[: len(name.encode())].mean())
            for own, name in zip(each, candidates, strict=True)
        ]

    def misplaced(self, piece: str) -> Callable[[str, Sequence[str], str], list[float]]:
        """Return ``fits`` after the beginning of another piece, as long as the text before."""
        return lambda before, candidates, after: self.fits(piece[: len(before)], candidates, after)

    def writer(self, seed: int) -> Callable[[str, str], list[str]]:
        """Return a function that writes false names after a text, byte by byte."""
        draw = torch.Generator().manual_seed(seed)

        @torch.no_grad()
        def write(before: str, after: str) -> list[str]:
            del after
            ids = torch.tensor([list((before or "\n").encode())]).repeat(WRITTEN, 1)
            start = ids.shape[1]
            for _ in range(LONGEST):
                chance = (self.net(ids).logits[:, -1] / HEAT).softmax(-1)
                ids = torch.cat([ids, chance.multinomial(1, generator=draw)], 1)
            texts = [bytes(row[start:].tolist()).decode("utf-8", "ignore") for row in ids]
            return [name[0] for text in texts if (name := re.match(r"[A-Za-z_]{2,}", text))]

        return write


def _unchanged(piece: str, text: str, pattern: str) -> Tensor:
    """Return which bytes of a changed text, but its first, are no part of a replaced name."""
    form, end, groups = "", 0, dict[str, str]()
    for match in re.finditer(pattern, piece):
        form += re.escape(piece[end : match.start()])
        again = match[0] in groups
        groups.setdefault(match[0], f"n{len(groups)}")
        place = groups[match[0]]
        form += f"(?P={place})" if again else f"(?P<{place}>{NAME})"
        end = match.end()
    aligned = re.fullmatch(form + re.escape(piece[end:]), text)
    assert aligned is not None, "a policy changes names alone"
    kept, at, end = torch.ones(len(text), dtype=torch.bool), 0, 0
    for match in re.finditer(pattern, piece):
        at += match.start() - end
        length = len(aligned[groups[match[0]]])
        kept[at : at + length] = False
        at, end = at + length, match.end()
    kept[0] = False
    return kept


def _names(text: str) -> list[str]:
    """Return the names of five letters and more that a call or a definition has in a text."""
    names = re.findall(rf"\b([a-z_]{{{SHORTEST},}})\(", text)
    return sorted({name for name in names if not keyword.iskeyword(name)})


def _pieces(n: int, draw: np.random.Generator) -> tuple[list[str], set[str]]:
    """Return pieces with at least two names each, and the names of all of them."""
    texts = [row["text"] for row in rows_of("sonde:stdlib/test-all")]
    cut = [text[i : i + BYTES] for text in texts for i in range(0, len(text) - BYTES, BYTES)]
    cut = [piece for piece in cut if piece.isascii() and len(_names(piece)) >= 2]
    names = {name for piece in cut for name in _names(piece)}
    return [cut[int(i)] for i in draw.permutation(len(cut))[:n]], names
