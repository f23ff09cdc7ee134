"""Few tokens for the frames of a clip: by relevance to a question, evenly, or at random.

Every frame is a digit in sixteen patches, with a name of two words whose vectors its patches carry
in noise. A question names two frames; the vector of a text is the sum of those of its words.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from sonde.compress import question_parts, segment_relevance, token_budget
from sonde_studies._pooled_digits import TOKENS, digits_read, reader_of
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, squares_of

FIT, CLIPS, FRAMES, MARK, STEPS, TINY = 1_000, 300, 8, 24, 500, 20
BUDGET, TEMPERATURE, NOISE = 12, 0.1, 2.0
WORDS = "amber bell cedar dusk ember fern glade heron iris jade kelp lark moss night opal pine"
ASKED = "Which digits are in the frame {} and in the frame {}?"


@final
class TokenBudgetsStudy(Study):
    """The digits of two frames that a question names, read from 12 of 128 tokens."""

    name = "token-budgets"
    title = "does sharing tokens by a question's relevance beat sharing them evenly?"
    paper = "luo2025quota"
    fidelity = "the paper's apportionment; cosines for its yes or no, common words part questions"
    data = "simulated clips of eight named digits in sixteen patches; 12 of 128 tokens are kept"
    claims = (
        Claim("aware", "By relevance the asked digits are read better than from even parts.",
              "accuracy, by relevance less evenly"),
        Claim("whole", "They are read as well as from all tokens, to ten points.",
              "accuracy, by relevance less all tokens, and 0.1"),
        Claim("floor", "A floor of one token for each frame costs less than five points.",
              "accuracy, by relevance with a floor less without, and 0.05"),
        Claim("parts", "The largest cosine to a part serves both frames better than the mean.",
              "accuracy of the less well read frame, largest less mean"),
        Claim("decoupled", "The question's parts serve them better than the question as a whole.",
              "accuracy of the less well read frame, parts less one vector"),
    )  # fmt: skip
    null = Claim("lot", "By a question of another clip early frames are read as well as late ones.",
                 "accuracy, by a strange question, first four frames less last four")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a reader of pooled patches, and test each way to distribute a clip's tokens."""
        x, label = digit_images(seed)
        tick("reader")
        reader = reader_of(x[:FIT], label[:FIT], seed, TINY if tiny else STEPS)
        draw = torch.Generator().manual_seed(seed)
        vector, names = _vectors(draw), [_names(draw) for _ in range(20 if tiny else CLIPS)]
        questions = [ASKED.format(*clip[:2]) for clip in names]
        told: dict[str, list[Tensor]] = {}
        tick("clips")
        for clip, question, stranger in zip(
            names, questions, questions[1:] + questions[:1], strict=True
        ):
            rows = torch.randint(FIT, len(x), (FRAMES,), generator=draw)
            place = torch.randperm(FRAMES, generator=draw)
            patches = squares_of(x[rows], 2)
            marks = vector([clip[i] for i in place.argsort().tolist()])[:, None, patches.shape[2] :]
            noise = NOISE * torch.randn(FRAMES, TOKENS, MARK, generator=draw)
            states = torch.cat([patches, marks + noise], 2).flatten(0, 1)
            for way, kept in _ways(states, vector, question, stranger, questions).items():
                said = digits_read(reader, states, kept) == label[rows]
                early = said[: FRAMES // 2].double().mean() - said[FRAMES // 2 :].double().mean()
                found = torch.cat([said[place[:2]].double(), early[None]])
                told.setdefault(way, []).append(found)
        first, second, early = (
            {way: float(torch.stack(found)[:, i].mean()) for way, found in told.items()}
            for i in range(3)
        )
        mean = {way: (first[way] + second[way]) / 2 for way in told}
        least = {way: min(first[way], second[way]) for way in told}
        return {
            "aware": mean["parts"] - mean["even"],
            "whole": mean["parts"] - mean["all"] + 0.1,
            "floor": mean["floor"] - mean["parts"] + 0.05,
            "parts": least["parts"] - least["mean of parts"],
            "decoupled": least["parts"] - least["one vector"],
            "lot": early["stranger"],
            **{f"accuracy | {way}": v for way, v in mean.items()},
            **{f"accuracy, less well read | {way}": v for way, v in least.items()},
        }


def _vectors(draw: torch.Generator) -> Callable[[Sequence[str]], Tensor]:
    """Return a function that gives texts sums of vectors of their words, after blank pixels."""
    known = ASKED.lower().replace("?", "").split() + WORDS.split()
    table = {word: torch.randn(MARK, generator=draw) / 2**0.5 for word in known}

    def vector(texts: Sequence[str]) -> Tensor:
        words = [text.lower().replace("?", "").split() for text in texts]
        found = torch.stack([torch.stack([table[w] for w in each]).sum(0) for each in words])
        return nn.functional.pad(found, (64 // TOKENS, 0))

    return vector


def _names(draw: torch.Generator) -> list[str]:
    """Return a name of two words for each frame of a clip."""
    words = WORDS.split()
    order = torch.randperm(len(words), generator=draw).unflatten(0, (FRAMES, -1)).tolist()
    return [" ".join(words[i] for i in pair) for pair in order]


def _ways(
    states: Tensor,
    vector: Callable[[Sequence[str]], Tensor],
    question: str,
    stranger: str,
    questions: Sequence[str],
) -> dict[str, Tensor]:
    """Return the tokens of each frame by each rule."""
    lengths = torch.full((FRAMES,), TOKENS)
    parts, strange = (vector(question_parts(text, questions)) for text in (question, stranger))
    near = segment_relevance(states, lengths, parts)

    def shared(relevance: Tensor, floor: int = 0) -> Tensor:
        return token_budget(relevance, lengths, BUDGET, TEMPERATURE, floor)

    return {
        "parts": shared(near),
        "floor": shared(near, floor=1),
        "mean of parts": shared(segment_relevance(states, lengths, parts, "mean")),
        "one vector": shared(segment_relevance(states, lengths, vector([question]))),
        "stranger": shared(segment_relevance(states, lengths, strange)),
        "even": shared(torch.ones(FRAMES)),
        "all": lengths,
    }
