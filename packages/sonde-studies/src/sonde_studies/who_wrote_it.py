"""Test whether a language model's states identify the writer, also with masked names.

Writers are packages of the standard library, each the work of other people with other habits. No
file stands on both sides of a fold. Packages differ in topic; masking removes most of it. Writers
that are models: ``which-model-wrote-it``.
"""

import sysconfig
from pathlib import Path
from typing import Any, final

import numpy as np

from sonde import load
from sonde_studies.arms import note_for
from sonde_studies.recipes.who_wrote_it import who_wrote_it
from sonde_studies.study import Claim, Figures, Study, Tick

WRITERS = ("asyncio", "email", "unittest", "xml")
PIECES, BYTES = 60, 240


@final
class WhoWroteItStudy(Study):
    """Four packages as writers; one package split in four as the null."""

    name = "who-wrote-it"
    title = "do states name the writer of a text, also without its names?"
    fidelity = (
        "the papers fine-tune a code model and mask identifiers; here states are read as they are, "
        "and words that not nearly all writers use are masked"
    )
    data = "60 pieces of 240 bytes of each of four packages of the standard library, by file"
    place = "byte-model"
    claims = (
        Claim(
            "named",
            "States name the package more often than chance.",
            "accuracy of a linear head less that of the most frequent writer",
            arms=("states", "most frequent writer"),
        ),
        Claim(
            "masked",
            "They do so where words that not all packages use are masked.",
            "accuracy less that of the most frequent writer, masked",
            arms=("states", "most frequent writer"),
        ),
        Claim(
            "beyond characters",
            "Masked, states name the package more often than counts of characters do.",
            "accuracy by states less accuracy by characters, masked",
            arms=("states", "characters"),
        ),
    )
    null = Claim(
        "one writer",
        "Files of one package that are called four writers by lot cannot be told apart.",
        "accuracy less that of the most frequent writer",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Sample pieces, run the recipe, and once with files of one package dealt to four."""
        model, draw = load("sonde:stdlib"), np.random.default_rng(seed)
        n = 24 if tiny else PIECES
        tick("four packages")
        rows = [row for name in WRITERS for row in _pieces(name, n, draw)]
        found = who_wrote_it(model, rows, group_column="file", seed=seed, progress=False)
        tick("one package")
        one = _pieces("asyncio", 4 * n, draw)
        files = draw.permutation(sorted({row["file"] for row in one}))
        lot = {name: f"writer {i % 4}" for i, name in enumerate(files)}
        dealt = [{**row, "author": lot[row["file"]]} for row in one]
        null = who_wrote_it(model, dealt, group_column="file", seed=seed, progress=False)
        for name in ("states", "characters", "most frequent writer"):
            note_for(name, rows=len(rows))
        arm = {row["arm"]: row["accuracy"] for row in found.rows}
        chance, frequent = (float(x.null) for x in (found, null))  # pyright: ignore[reportArgumentType]
        fake = {row["arm"]: row["accuracy"] for row in null.rows}
        return {
            "named": arm["states, as written"] - chance,
            "masked": arm["states, masked"] - chance,
            "beyond characters": arm["states, masked"] - arm["characters, masked"],
            "one writer": fake["states, masked"] - frequent,
            **{f"packages | {name}": value for name, value in arm.items()},
        }


def _pieces(package: str, n: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    """Return pieces of the files of a package, drawn without overlap."""
    found = []
    for path in _files(package):
        text = path.read_text("utf-8", errors="replace")
        for start in range(0, len(text) - BYTES, 2 * BYTES):
            found.append(
                {"text": text[start : start + BYTES], "author": package, "file": str(path)}
            )
    return [found[int(i)] for i in draw.permutation(len(found))[:n]]


def _files(package: str) -> list[Path]:
    return sorted((Path(sysconfig.get_paths()["stdlib"]) / package).rglob("*.py"))
