"""Codes and reasons that several rules name alike."""

from typing import Final

OF_PARTS: Final = (
    "SND003",
    "SND012",
    "SND020",
    "SND021",
    "SND022",
    "SND023",
    "SND024",
    "SND026",
    "SND028",
    "SND029",
    "SND031",
    "SND033",
    "SND037",
    "SND039",
    "SND046",
    "SND061",
    "SND062",
    "SND063",
    "SND064",
    "SND065",
    "SND066",
    "SND067",
    "SND069",
)
"""What a part of the model that is broken or untrained explains."""
NO_FUNCTION: Final = "the state is not a function of the row"
