"""Test whether one user's rows reach others: shared index, labels, redaction, tuning.

Packages of the standard library stand for users. The model has 3 million parameters: what a large
model gives away of its training rows, it cannot show.
"""

import sysconfig
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sonde import load
from sonde_studies.recipes.per_user_flow import LABELLED, REDACTED, SHARED, TUNED, per_user_flow
from sonde_studies.study import Claim, Figures, Study, Tick

USERS = ("asyncio", "email", "unittest", "xml")
PIECES, TINY, BYTES = 14, 6, 150


@final
class PerUserFlowStudy(Study):
    """Four users with fourteen pieces each; the rows of one user are replaced."""

    name = "per-user-flow"
    title = "can one user's rows change another user's answers?"
    fidelity = "labels on rows and one fine-tuning; the papers also bound what a policy may release"
    data = "14 pieces of 150 bytes of each of four packages of the standard library"
    claims = (
        Claim("shared", "In an index for all, other users' answers change.",
              "share of answers that changed"),
        Claim("labels", "In an index with labels none changes, to the byte.",
              "0.001 less the share of answers that changed", above=0.0),
        Claim("tuned", "Fine-tuning on all rows moves other users' answers.",
              "largest change of a log-probability, mean over queries, in nats"),
        Claim("redacted", "Redaction keeps private words out of other users' answers.",
              "share of answers with private words, shared less redacted"),
    )  # fmt: skip
    null = Claim("lot", "Texts dealt to users by lot: another user's row is the answer by chance.",
                 "share of answers that are another user's less that of stored rows")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe on four packages, and on randomly dealt texts."""
        model, draw = load("sonde:stdlib"), np.random.default_rng(seed)
        rows = [row for name in USERS for row in _pieces(name, TINY if tiny else PIECES, draw)]
        asked: dict[str, Any] = {"seed": seed, "progress": False}
        tick("users")
        found = per_user_flow(model, rows, epochs=0 if tiny else 1, **asked)
        tick("by lot")
        lot = draw.permutation([row["user"] for row in rows])
        dealt = [row | {"user": str(name)} for row, name in zip(rows, lot, strict=True)]
        null = per_user_flow(model, dealt, epochs=0, **asked)
        way = {str(row["way"]): row for row in found.rows}
        n = TINY if tiny else PIECES
        own, stored = n // 2, len(USERS) * (n // 2)
        return {
            "shared": way[SHARED]["changed"],
            "labels": 0.001 - way[LABELLED]["changed"],
            "tuned": float(torch.as_tensor(way.get(TUNED, {}).get("nats", 0.0))),
            "redacted": way[SHARED]["private words"] - way[REDACTED]["private words"],
            "lot": null.rows[0]["another's row"] - (1 - own / stored),
            **{f"{name} | {key}": float(row[key]) for name, row in way.items()
               for key in ("another's row", "changed", "private words") if key in row},
        }  # fmt: skip


def _pieces(package: str, n: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    """Return pieces from different positions of a package's files."""
    root = Path(sysconfig.get_paths()["stdlib"]) / package
    found = [
        {"text": text[start : start + BYTES], "user": package}
        for path in sorted(root.rglob("*.py"))
        for text in [path.read_text("utf-8", errors="replace")]
        for start in range(0, len(text) - BYTES, 4 * BYTES)
    ]
    return [found[int(i)] for i in draw.permutation(len(found))[:n]]
