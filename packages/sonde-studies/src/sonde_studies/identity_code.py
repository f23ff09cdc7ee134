"""An adapter that reads an encoder of identity, or one that knows the picture as it is.

The generator of ``painter`` is frozen. An encoder is trained on pairs of pictures of a subject, a
handwritten digit in its ink, on two grounds: to recognise the subject, or to rebuild the pictures.
It is frozen, and keys and values for its tokens learn to paint the subject.
"""

from typing import final

from sonde_studies._subject_codes import (
    STEPS,
    Adapted,
    Kind,
    adapter,
    encoder,
    read_from,
    strangers_ink,
)
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.painter import studio
from sonde_studies.worlds.subjects import asked

ARMS: dict[str, tuple[Kind, float]] = {
    "as it is": ("rebuild", 0.0),
    "identity": ("recognise", 0.0),
    "as it is, shuffled": ("rebuild", 0.5),
    "identity, shuffled": ("recognise", 0.5),
}
"""What the encoder learned, and the share of another picture of the subject in training."""


@final
class IdentityCodeStudy(Study):
    """New subjects, and words for another ground than that of their picture."""

    name = "identity-code"
    title = "does an adapter of an identity encoder follow a picture's other attributes less?"
    paper = "yu2024facechainfact"
    fidelity = (
        "toy size: handwritten digits in an ink for faces, and the ground for all other "
        "attributes; a transformer of one block that is trained to recognise subjects whose pairs "
        "are known, for one of faces; attention beside the words' for gated attention; of five "
        "temperatures, heads and steps of the recognition the best was chosen on seeds 100 and "
        "101, nothing of its rival"
    )
    data = "handwritten digits in an ink on a ground, named by words or shown by a picture"
    seconds = 35.0
    claims = (
        Claim("follows less", "Reading an encoder of identity, an adapter carries over less of the "
              "ground of the subject's picture than reading one that rebuilds the picture.",
              "slope of the painted ground on the picture's, rebuilding less identity, "
              "the best of five settings of identity",
              arms=("identity", "as it is")),
        Claim("words", "It follows the ground that words name more.",
              "share of the variance of grounds, identity less rebuilding, "
              "the best of five settings of identity",
              arms=("identity", "as it is")),
        Claim("kept", "It keeps the subject as well, to 5 points.",
              "share of the variance of the subject, identity less rebuilding, and 0.05, "
              "the best of five settings of identity",
              arms=("identity", "as it is")),
        Claim("shuffled", "Half of the pictures shuffled with others of their subjects in training "
              "lower what is carried over as well, of an encoder that rebuilds.",
              "slope of the painted ground on the picture's, without less with",
              arms=("as it is, shuffled", "as it is")),
        Claim("over shuffling", "The encoder of identity lowers it more than shuffling does.",
              "slope of the painted ground on the picture's, shuffled less identity, "
              "the best of five settings of identity",
              arms=("identity", "as it is, shuffled")),
        Claim("both", "Shuffling beside the encoder of identity lowers it further.",
              "slope of the painted ground on the picture's, identity less both",
              arms=("identity, shuffled", "identity")),
    )  # fmt: skip
    null = Claim("unrelated", "The ink has nothing of the picture that another canvas is given.",
                 "correlation, mean of three channels, identity")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both encoders and four adapters, and paint new subjects."""
        steps = 5 if tiny else STEPS
        tick("painter")
        at = studio(seed, 10) if tiny else studio(seed)
        of = asked(seed, 50 if tiny else 400)
        nets, found = dict[str, Adapted](), dict[str, dict[str, float]]()
        for name, (kind, shuffled) in ARMS.items():
            tick(name)
            nets[name] = adapter(at, seed, [encoder(seed, kind, steps)], steps, shuffled)
            found[name] = read_from(at, nets[name], of)
        plain, one, other, both = found.values()
        return {
            "follows less": plain["carried"] - one["carried"],
            "words": one["ground"] - plain["ground"],
            "kept": one["subject"] - plain["subject"] + 0.05,
            "shuffled": plain["carried"] - other["carried"],
            "over shuffling": other["carried"] - one["carried"],
            "both": one["carried"] - both["carried"],
            "unrelated": strangers_ink(nets["identity"], of),
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
        }
