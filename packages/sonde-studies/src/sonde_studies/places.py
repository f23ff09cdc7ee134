"""The places in which studies run, what each costs, and where it comes from.

A claim about pretrained models or large pictures can fail on small nets without being wrong. A
study names its place, and a system whose claim was tried in too small a place names the place that
it waits for.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A kind of model and data.

    Parameters
    ----------
    what : str
        Models and data of the place.
    cost : str
        Time of one seed on one core, and what has to be fetched.
    source : str
        How to get it; empty for a place that this project cannot offer.
    """

    what: str
    cost: str
    source: str = ""


PLACES: dict[str, Place] = {
    "small": Place(
        "nets that are trained in the study, on digits of 8 x 8 pixels or on planted data",
        "1 to 60 s a seed",
        "shipped",
    ),
    "tables": Place("real tables of scikit-learn, small nets", "1 to 10 s a seed", "shipped"),
    "byte-model": Place(
        "the shipped model of bytes (3 million weights) and files of Python's library",
        "10 to 60 s a seed",
        "shipped",
    ),
    "fashion": Place(
        "Fashion-MNIST at 28 x 28 pixels",
        "30 to 120 s a seed; 30 MB",
        "make places",
    ),
    "smollm2": Place(
        "SmolLM2-135M-Instruct, a pretrained language model",
        "0.1 s a forward pass of 64 tokens; 540 MB",
        "make places",
    ),
    "gemma3": Place(
        "Gemma 3 270M, a second pretrained language model",
        "0.3 s a forward pass of 64 tokens; 1.1 GB",
        "make places",
    ),
    "minilm": Place(
        "MiniLM, a pretrained encoder of sentences", "10 ms a sentence; 90 MB", "make field"
    ),
    "efficientnet": Place(
        "EfficientNet-lite0, a net of ImageNet, on Fashion-MNIST and Tux Paint's stamps",
        "14 ms a picture of 96 x 96; 150 MB",
        "make places",
    ),
    "gpu": Place("large models, trained or run on an accelerator", "hours"),
    "data": Place("data that no package carries", "unknown"),
}
