"""Recoloured pictures: whether channels and neighbouring pixels still fit one another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from sonde import InputError
from sonde.core import ChartAxis, marks
from sonde.data import rows_of
from sonde.layers import SecondOrder
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.heads import linear_head

QUESTION = "Were the colours of these pictures changed?"
SIZE, MOST, LEAST, ALARM = 40, 64, 20, 0.05
LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
KINDS = ("neighbours", "channels", "both")
Patches = Float[Tensor, "patch 3 high wide"]


def recolour(
    pictures: Any,
    *,
    questioned: Any = None,
    image_column: str = "image",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Learn what recolouring does to pictures of one camera or archive, and look for it in others.

    Patches of the pictures are recoloured here by curves and by mixing channels. A linear head on
    the correlations of neighbouring pixels, on those of channels, and on both tells them from
    the originals, judged on pictures that it did not learn on; then it looks at the questioned.

    Example: sonde recipe recolour ORIGINALS --questioned NEW -o colours.html

    Parameters
    ----------
    pictures : str, path or iterable
        Pictures in colour that were not changed, four or more.
    questioned : str, path or iterable, optional
        Pictures that may have been.
    image_column : str, default="image"
        Column of the picture, where data are rows.
    limit : int, optional
        Read only the first pictures.
    seed : int, default=0
        Draws the changes, and the pictures that judge.
    """
    draw = torch.Generator().manual_seed(seed)
    patches = [patches_of(p, draw) for _, p in _opened(pictures, image_column, limit)]
    order = torch.randperm(len(patches), generator=draw).tolist()
    n_held = max(1, len(patches) * 2 // 5)
    if len(patches) < 4 or sum(map(len, patches)) < LEAST:
        raise InputError(
            f"recolour: expected four or more pictures of {SIZE} x {SIZE} pixels or more, got "
            f"{len(patches)} with {sum(map(len, patches))} patches."
        )
    sides = [torch.cat([patches[i] for i in o]) for o in (order[n_held:], order[:n_held])]
    (x, changed), (y, truth) = (recoloured(side, draw) for side in sides)
    heads = {kind: linear_head().fit(features(kind, x).numpy(), changed.numpy()) for kind in KINDS}
    said = {kind: _score(head, kind, y) for kind, head in heads.items()}
    found = {kind: auroc(s, truth.numpy(), seed=seed) for kind, s in said.items()}
    best = max(KINDS, key=lambda kind: float(found[kind].value))
    limit_ = float(np.quantile(said[best][~truth.numpy()], 1 - ALARM))
    asked = _asked(questioned, image_column, limit, heads[best], best, limit_, draw)
    value = float(found[best].value)
    works = found[best].low > 0.5
    flagged = [name for name, share in asked.items() if share > 0.5]
    told = f" Of {len(asked)} questioned pictures {len(flagged)} have most patches above it."
    verdict = "recoloured" if flagged else "not seen" if asked else "can be told"
    return Answer(
        question=QUESTION,
        verdict=verdict if works else "cannot be told",
        level="warning" if flagged or not works else "clear",
        sentence=f"On {len(y)} patches of {n_held} other pictures {best} tell recoloured patches "
        f"with an AUROC of {value:.3f} ({', '.join(_listed(found))}); {ALARM:.0%} of unchanged "
        f"patches lie above the threshold.{told if asked else ''}",
        value=value,
        se=found[best].se,
        null=0.5,
        n=len(y),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple({"what": f"AUROC, {k}", "value": float(v.value)} for k, v in found.items())
        + tuple({"what": f"flagged, {name}", "value": v} for name, v in asked.items()),
        drawn=marks(
            "Scores of patches of the pictures that judge",
            [
                {"score": float(s), "patch": "recoloured" if t else "as it was"}
                for s, t in zip(said[best], truth.tolist(), strict=True)
            ],
            "score",
            ChartAxis("patch", title=""),
            by="patch",
        ),
        facts={"threshold": f"{limit_:.4g}", "pictures": str(len(patches))},
        advice=(
            "The head knows curves and mixing of channels, at the quality of these files: "
            "compression or resizing of the questioned pictures alone may raise an alarm.",
        ),
    )


def patches_of(picture: Float[Tensor, "3 high wide"], draw: torch.Generator) -> Patches:
    """Return patches of a picture without overlap; of many some, drawn."""
    cut = picture.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE)
    found = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE)
    return found[torch.randperm(len(found), generator=draw)[:MOST]]


def recoloured(
    x: Patches, draw: torch.Generator, strength: float = 1.0
) -> tuple[Patches, Bool[Tensor, "patch"]]:
    """Return patches of 8 bits after a random half was recoloured, and which were."""
    changed = torch.rand(len(x), generator=draw) < 0.5
    curve = 1 + strength * 0.8 * (torch.rand(len(x), 3, 1, 1, generator=draw) - 0.5)
    mixing = strength * 0.5 * torch.rand(len(x), 3, 3, generator=draw)
    mixing = torch.eye(3) * (1 - mixing.sum(2, keepdim=True)) + mixing
    made = torch.einsum("ncd,ndhw->nchw", mixing, x.clamp(min=1e-6) ** curve).clamp(0, 1)
    mixed = torch.where(changed[:, None, None, None], made, x)
    return (mixed * 255).round() / 255, changed


def features(kind: str, x: Patches) -> Float[Tensor, "patch feature"]:
    """Return the correlations of neighbouring pixels, of channels, or both."""
    parts = list[Tensor]()
    if kind != "channels":
        parts.append(SecondOrder("spatial", 3, lags=LAGS)(x).flatten(1))
    if kind != "neighbours":
        high = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]  # what differs between neighbours
        for v in (x, high):
            flat = v.flatten(2)
            flat = flat - flat.mean(2, keepdim=True)
            unit = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-6)
            parts.append((unit @ unit.transpose(1, 2))[:, [0, 0, 1], [1, 2, 2]])
    return torch.cat(parts, 1)


def _score(head: Any, kind: str, x: Tensor) -> Any:
    return head.decision_function(features(kind, x).numpy())


def _listed(found: Mapping[str, Any]) -> Sequence[str]:
    return [f"{kind} {float(v.value):.3f}" for kind, v in found.items()]


def _asked(
    questioned: Any, column: str, limit: int | None, head: Any, kind: str, most: float,
    draw: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """Return the share of patches of each questioned picture that lie above the threshold."""
    if questioned is None:
        return {}
    return {
        name: float((_score(head, kind, (patches_of(p, draw) * 255).round() / 255) > most).mean())
        for name, p in _opened(questioned, column, limit)
    }


def _opened(data: Any, column: str, limit: int | None) -> list[tuple[str, Tensor]]:
    """Return the name and the pixels in 0..1 of each picture that holds a patch."""
    found = list[tuple[str, Tensor]]()
    for i, row in enumerate(rows_of(data, limit)):
        if column not in row:
            raise InputError(f"recolour: expected the column {column!r}, got {', '.join(row)}.")
        given = row[column]
        opened = Image.open(given) if isinstance(given, str | Path) else given
        if isinstance(opened, Image.Image):
            pixels = np.asarray(opened.convert("RGB")).copy()
            x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        else:
            x = torch.as_tensor(opened).float()
        if x.ndim != 3 or len(x) != 3 or float(x.max()) > 1.0 or float(x.min()) < 0.0:
            raise InputError(
                "recolour: expected pictures, or tensors (3, high, wide) with values from 0 to 1, "
                f"got {tuple(x.shape)} with values up to {float(x.max()):.3g}."
            )
        if min(x.shape[1:]) >= SIZE:
            name = Path(given).name if isinstance(given, str | Path) else f"picture {i}"
            found.append((name, x))
    return found
