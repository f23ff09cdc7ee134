"""Questions about named frames of a clip, a model that parts them and one that says yes or no.

A question asks for two frames and leaves out a third; all questions have the same words, names
apart, so that counts of words cannot tell which frame is left out.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sonde import Model
from sonde_studies._language import language_model, train
from sonde_studies._pooled_digits import TOKENS

MARK, NOISE, FRAMES = 24, 2.0, 8
WORDS = "amber bell cedar dusk ember fern glade heron iris jade kelp lark moss night opal pine"
ASKED = (
    "which digits are in the frame {} and in the frame {} but not in the frame {}",
    "which digits are not in the frame {2} but in the frame {0} and in the frame {1}",
)
COMMON = "which digits are in the frame and but not"
KNOWN = [str(word) for word in f"{COMMON} {WORDS}".split()]
PROMPT, YES_PROMPT, LONGEST = "{question} =", "{segment}, {part} =", 40
ANSWERS, TAGS, WORD_SCALE = ("yes", "no"), 4, 10.0
PIXELS = 64 // TOKENS


def names_of(draw: torch.Generator) -> list[str]:
    """Return a name of two words for each frame of a clip."""
    words = WORDS.split()
    order = torch.randperm(len(words), generator=draw).unflatten(0, (FRAMES, -1)).tolist()
    return [" ".join(words[i] for i in pair) for pair in order]


def question_of(names: Sequence[str], draw: torch.Generator) -> str:
    """Return a question for the first two names, without the third."""
    return ASKED[int(torch.randint(len(ASKED), (), generator=draw))].format(*names[:3])


def word_vectors(draw: torch.Generator) -> Callable[[Sequence[str]], Float[Tensor, "text dim"]]:
    """Return a function that gives texts sums of vectors of their words, after blank pixels."""
    table = {word: torch.randn(MARK, generator=draw) / 2**0.5 for word in KNOWN}

    def vector(texts: Sequence[str]) -> Tensor:
        found = torch.stack([torch.stack([table[w] for w in t.split()]).sum(0) for t in texts])
        return pad(found, (PIXELS, 0))

    return vector


def frames_of(
    patches: Float[Tensor, "frame token pixel"],
    marks: Float[Tensor, "frame dim"],
    draw: torch.Generator,
) -> Float[Tensor, "frame token dim"]:
    """Return patches with the vectors of the frames' names beside them, in noise."""
    noise = NOISE * torch.randn(len(patches), TOKENS, MARK, generator=draw)
    return torch.cat([patches, marks[:, None, PIXELS:] + noise], 2)


def parter_of(seed: int, steps: int) -> Model:
    """Return a language model that writes the frames that a question asks for."""
    model = language_model([*KNOWN, "=", ",", "\n"], LONGEST, seed)
    draw = torch.Generator().manual_seed(seed)

    def texts(n: int) -> list[str]:
        asked = [names_of(draw) for _ in range(n)]
        return [f"{question_of(x, draw)} = {x[0]}, {x[1]}\n" for x in asked]

    # at three times this rate two of three starts do not learn to copy names
    train(model, texts, steps, "=", rate=1e-3)
    model.module.eval()
    return model


def known_words(parts: Sequence[str], question: str) -> list[str]:
    """Return the parts without words that have no vector, or the question if nothing is left."""
    known = [" ".join(w for w in part.split() if w in KNOWN) for part in parts]
    return [part for part in known if part] or [question]


def parted(found: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> float:
    """Return the share of questions whose parts are the two frames that are asked for."""
    return sum({*a} == {*b[:2]} for a, b in zip(found, names, strict=True)) / len(names)


def tags_of(
    frames: Float[Tensor, "frame token dim"], vector: Callable[[Sequence[str]], Tensor]
) -> list[str]:
    """Return the likeliest words of each frame's name as a text, the likeliest one first."""
    words = WORDS.split()
    found = (frames.mean(1) @ vector(words).T).topk(TAGS, 1).indices
    return [" ".join(words[i] for i in row) for row in found.tolist()]


def yes_model_of(
    patches: Float[Tensor, "image token pixel"],
    vector: Callable[[Sequence[str]], Tensor],
    seed: int,
    steps: int,
) -> Model:
    """Return a language model that reads a frame's words and a question, and says yes or no.

    Half of its texts hold a whole question, the others the name of a frame.
    """
    model = language_model([*KNOWN, "=", ",", "\n", *ANSWERS], LONGEST, seed)
    # with GPT-2's own small vectors as many steps do not learn to compare words
    with torch.no_grad():
        for name in ("wte", "wpe"):
            model.module.get_parameter(f"transformer.{name}.weight").mul_(WORD_SCALE)
    draw = torch.Generator().manual_seed(seed)

    def texts(n: int) -> list[str]:
        clips = [names_of(draw) for _ in range(n)]
        # half of the frames are asked for; of the others half are left out by the question
        kinds = torch.randint(4, (n,), generator=draw).tolist()
        marks = vector([clip[kind] for clip, kind in zip(clips, kinds, strict=True)])
        rows = torch.randint(len(patches), (n,), generator=draw)
        found = []
        for i, tags in enumerate(tags_of(frames_of(patches[rows], marks, draw), vector)):
            other = int(torch.randint(2, (), generator=draw))
            asked, answer = (
                (question_of(clips[i], draw), ANSWERS[kinds[i] // 2])
                if i % 2
                else (clips[i][other], ANSWERS[kinds[i] != other])
            )
            text = YES_PROMPT.replace("{segment}", tags).replace("{part}", asked)
            found.append(f"{text} {answer}\n")
        return found

    train(model, texts, steps, "=", rate=1e-3)
    model.module.eval()
    return model
