"""Few tokens for the frames of a clip: by relevance to a question, evenly, or at random.

Every frame is a digit in sixteen patches, with a name of two words whose vectors its patches carry
in noise. A question asks for two frames and leaves out a third. A small language model says for
each frame whether it is asked for, from the four words that the frame most likely carries.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from sonde import Model
from sonde.compress import (
    asked_parts,
    question_parts,
    segment_relevance,
    token_budget,
    yes_relevance,
)
from sonde_studies import _frame_questions as asked
from sonde_studies._frame_questions import ANSWERS, FRAMES, PROMPT, YES_PROMPT
from sonde_studies._pooled_digits import TOKENS, digits_read, reader_of
from sonde_studies.arms import note_again, note_for, note_sum, passes_of
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, squares_of

FIT, CLIPS, STEPS, PARTS, YES, TINY = 1_000, 200, 500, 500, 1_800, 4
BUDGET, TEMPERATURE, LENGTHS = 12, 0.1, torch.full((FRAMES,), TOKENS)
Vector = Callable[[Sequence[str]], Tensor]


@final
class TokenBudgetsStudy(Study):
    """The digits of two frames that a question names, read from 12 of 128 tokens."""

    name = "token-budgets"
    title = "does sharing tokens by a question's relevance beat sharing them evenly?"
    paper = "luo2025quota"
    fidelity = "the paper's way; small language models that read the words of frames, not pixels"
    data = "simulated clips of eight named digits in sixteen patches; 12 of 128 tokens are kept"
    claims = (
        Claim("aware", "By relevance, which takes passes of two small models, the asked digits "
              "are read better than from even parts.",
              "accuracy, by relevance less evenly",
              arms=("yes, model's parts", "even")),
        Claim("whole", "They are read as well as from all tokens, to ten points, with a tenth of "
              "the memory but passes of two small models.",
              "accuracy, by relevance less all tokens, and 0.1",
              arms=("yes, model's parts", "all")),
        Claim("floor", "A floor of one token for each frame costs less than five points.",
              "accuracy, by relevance with a floor less without, and 0.05",
              arms=("yes, floor", "yes, model's parts")),
        Claim("yes", "A model's yes, at the cost of its passes, serves better than a cosine, "
              "both with the model's parts.",
              "accuracy, by yes less by cosine",
              arms=("yes, model's parts", "cosine, model's parts")),
        Claim("whole question", "And better, both with the whole question, again at the cost of "
              "passes.",
              "accuracy, by yes less by cosine, whole question",
              arms=("yes, whole question", "cosine, whole question")),
        Claim("decoupled", "The model's parts, with two to four times the passes, serve its yes "
              "better than the whole question.",
              "accuracy of the less well read frame, parts less whole question",
              arms=("yes, model's parts", "yes, whole question")),
        Claim("written", "Parts that a model writes, at the cost of passes, serve better than "
              "those by common words.",
              "accuracy, by cosine, parts of the model less parts by the rule",
              arms=("cosine, model's parts", "cosine, rule's parts")),
        Claim("parts", "The largest cosine to a part serves both frames better than the mean.",
              "accuracy of the less well read frame, largest less mean",
              arms=("cosine, model's parts", "cosine, mean of parts")),
    )  # fmt: skip
    null = Claim("lot", "By a question of another clip early frames are read as well as late ones.",
                 "accuracy, by a strange question, first four frames less last four")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a reader and both models, and test each way to distribute a clip's tokens."""
        x, label = digit_images(seed)
        tick("reader")
        reader = reader_of(x[:FIT], label[:FIT], seed, TINY if tiny else STEPS)
        draw = torch.Generator().manual_seed(seed)
        vector, squares = asked.word_vectors(draw), squares_of(x, 2)
        tick("model of parts")
        parter = asked.parter_of(seed, TINY if tiny else PARTS)
        tick("model of answers")
        yes = asked.yes_model_of(squares[:FIT], vector, seed, TINY if tiny else YES)
        names = [asked.names_of(draw) for _ in range(8 if tiny else CLIPS)]
        questions = [asked.question_of(clip, draw) for clip in names]
        tick("parts")
        with passes_of("writing parts", parter.module):
            written = [asked.known_words(asked_parts(parter, q, PROMPT, 8), q) for q in questions]
        told: dict[str, list[Tensor]] = {}
        tick("clips")
        for i, (clip, question) in enumerate(zip(names, questions, strict=True)):
            rows = torch.randint(FIT, len(x), (FRAMES,), generator=draw)
            place = torch.randperm(FRAMES, generator=draw)
            marks = vector([clip[k] for k in place.argsort().tolist()])
            frames = asked.frames_of(squares[rows], marks, draw)
            texts = {
                "whole question": [question],
                "model's parts": written[i],
                "rule's parts": question_parts(question, questions),
                "stranger": written[i - 1],
            }
            for way, kept in _ways(frames, yes, vector, texts).items():
                said = digits_read(reader, frames.flatten(0, 1), kept) == label[rows]
                early = said[: FRAMES // 2].double().mean() - said[FRAMES // 2 :].double().mean()
                found = torch.cat([said[place[:2]].double(), early[None]])
                told.setdefault(way, []).append(found)
        _note_ways(told)
        return _figures({way: torch.stack(found).mean(0) for way, found in told.items()}) | {
            "share of questions that the model parts correctly": asked.parted(written, names)
        }


def _note_ways(ways: Iterable[str]) -> None:
    """Note the passes of both small models, and the tokens that are kept, of each way."""
    note_sum("yes, model's parts", ("writing parts", "reading model's parts"))
    note_again("yes, floor", "yes, model's parts")
    note_again("yes, whole question", "reading whole question")
    for way in ("cosine, model's parts", "cosine, mean of parts"):
        note_again(way, "writing parts")
    for way in ways:
        kept = int(LENGTHS.sum()) if way == "all" else BUDGET
        note_for(way, passes=0, bytes=4 * kept * (asked.PIXELS + asked.MARK))


def _ways(
    frames: Tensor, yes: Model, vector: Vector, texts: dict[str, list[str]]
) -> dict[str, Tensor]:
    """Return the tokens of each frame by each rule."""
    states = frames.flatten(0, 1)

    def shared(relevance: Tensor, floor: int = 0) -> Tensor:
        return token_budget(relevance, LENGTHS, BUDGET, TEMPERATURE, floor)

    tags = asked.tags_of(frames, vector)
    chance = dict[str, Tensor]()
    for kind, parts in texts.items():
        with passes_of(f"reading {kind}", yes.module):
            chance[kind] = yes_relevance(yes, tags, parts, YES_PROMPT, ANSWERS)
    own = vector(texts["model's parts"])
    return {
        **{f"yes, {kind}": shared(found) for kind, found in chance.items()},
        **{
            f"cosine, {kind}": shared(segment_relevance(states, LENGTHS, vector(parts)))
            for kind, parts in texts.items()
        },
        "yes, floor": shared(chance["model's parts"], floor=1),
        "cosine, mean of parts": shared(segment_relevance(states, LENGTHS, own, "mean")),
        "even": shared(torch.ones(FRAMES)),
        "all": LENGTHS,
    }


def _figures(told: dict[str, Tensor]) -> dict[str, float]:
    """Return claims and arms from the accuracies of both frames, and of early less late frames."""
    mean = {way: float(x[:2].mean()) for way, x in told.items()}
    least = {way: float(x[:2].amin()) for way, x in told.items()}
    best = mean["yes, model's parts"]
    return {
        "aware": best - mean["even"],
        "whole": best - mean["all"] + 0.1,
        "floor": mean["yes, floor"] - best + 0.05,
        "yes": best - mean["cosine, model's parts"],
        "whole question": mean["yes, whole question"] - mean["cosine, whole question"],
        "decoupled": least["yes, model's parts"] - least["yes, whole question"],
        "written": mean["cosine, model's parts"] - mean["cosine, rule's parts"],
        "parts": least["cosine, model's parts"] - least["cosine, mean of parts"],
        "lot": float(told["yes, stranger"][2]),
        **{f"accuracy | {way}": v for way, v in mean.items()},
        **{f"accuracy, less well read | {way}": v for way, v in least.items()},
    }
