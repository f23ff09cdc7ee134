"""Test whether one user's rows reach others: shared index, labels, redaction, tuning.

Packages of the standard library stand for users. The model has 3 million parameters: what a large
model gives away of its training rows, it cannot show.
"""

import sysconfig
from pathlib import Path
from typing import final

import numpy as np

from sonde import load
from sonde_studies._labelled_index import WAYS, labelled_index
from sonde_studies.arms import note_for
from sonde_studies.parts.sharing import Sharing
from sonde_studies.recipes.per_user_flow import REDACTED, SHARED, TUNED, per_user_flow
from sonde_studies.study import Claim, Figures, Study, Tick

USERS = ("asyncio", "email", "unittest", "xml")
PIECES, TINY, BYTES, RATE = 14, 6, 150, 1e-4
NONE, LATE, FIRST = WAYS


@final
class PerUserFlowStudy(Study):
    """Four users with fourteen pieces each; the rows of one user are replaced."""

    name = "per-user-flow"
    title = "can one user's rows change another user's answers?"
    fidelity = "labels on rows and one fine-tuning; the papers also bound what a policy may release"
    data = "21 pieces of 150 bytes of each of four packages of the standard library"
    place = "byte-model"
    claims = (
        Claim("late", "With labels on the rows of an index that was whitened on all, half as many "
              "change at most.", "share of next bytes that changed, half of that without labels "
              "less that with labels",
              arms=("labels late", "no labels")),
        Claim("read", "From such an index a user still tells which texts another user stored.",
              "AUROC of an attack by near rows, less 0.7"),
        Claim("cost", "Labels cost a user more than 2 points of accuracy.",
              "accuracy of the next byte, without labels less with labels, less 0.02",
              arms=("no labels", "labels late")),
        Claim("cheap", "Whitening on the user's own rows instead costs 2 points at most.",
              "accuracy of the next byte, labels before the fit less after, and 0.02",
              arms=("labels first", "labels late")),
        Claim("tuned", "Fine-tuning moves other users' answers more with the rows of one user "
              "replaced than with all rows in another order.",
              "largest change of a log-probability, mean over queries, in nats, difference",
              arms=("one user's rows replaced", "another order")),
        Claim("redacted", "With private words replaced, answers come from a user's own texts as "
              "often, to five points.",
              "share of answers from another's text, shared less redacted, and 0.05",
              arms=("shared", "redacted")),
    )  # fmt: skip
    null = Claim("first", "With labels before the fit the attack finds nothing.",
                 "AUROC of an attack by near rows", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe on four packages, and compare labels before and after the fit."""
        model, draw, n = load("sonde:stdlib"), np.random.default_rng(seed), TINY if tiny else PIECES
        of = {name: _pieces(name, n + n // 2, draw) for name in USERS}
        rows = [{"text": text, "user": name} for name in USERS for text in of[name][:n]]
        tick("users")
        found = per_user_flow(model, rows, epochs=0, seed=seed, progress=False)
        way = {str(row["way"]): row for row in found.rows}
        texts, user = [row["text"] for row in rows], np.array([row["user"] for row in rows])
        users = Sharing(model, texts, user, seed, progress=False)
        tick("tuning")
        after = users.by_tuning(1, RATE, orders=True)
        tick("labels")
        stored, other, asked = (
            {name: own[k : k + n // 2] for name, own in of.items()} for k in (0, n // 2, n)
        )
        index = labelled_index(model, stored, other, asked)
        for name in ("no labels", "labels late", "shared", "redacted"):
            note_for(name, rows=len(USERS) * (n // 2))
        note_for("labels first", rows=n // 2)
        changed, attack, right = (
            {w: index[f"{key} | {w}"] for w in WAYS} for key in ("changed", "attack", "accuracy")
        )
        return {
            "late": changed[NONE] / 2 - changed[LATE],
            "read": attack[LATE] - 0.7,
            "cost": right[NONE] - right[LATE] - 0.02,
            "cheap": right[FIRST] - right[LATE] + 0.02,
            "tuned": after["nats"] - after["nats, in another order"],
            "redacted": way[SHARED]["another's row"] - way[REDACTED]["another's row"] + 0.05,
            "first": attack[FIRST],
            **{f"{TUNED} | {key}": value for key, value in after.items()},
            **index,
            **{f"{name} | {key}": float(row[key]) for name, row in way.items()
               for key in ("another's row", "changed", "private words") if key in row},
        }  # fmt: skip


def _pieces(package: str, n: int, draw: np.random.Generator) -> list[str]:
    """Return pieces from different positions of a package's files."""
    root = Path(sysconfig.get_paths()["stdlib"]) / package
    found = [
        text[start : start + BYTES]
        for path in sorted(root.rglob("*.py"))
        for text in [path.read_text("utf-8", errors="replace")]
        for start in range(0, len(text) - BYTES, 4 * BYTES)
    ]
    return [found[int(i)] for i in draw.permutation(len(found))[:n]]
