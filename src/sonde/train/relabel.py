"""Give unlabelled rows near the known classes a class of their own."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sonde.core.errors import InputError
from sonde.core.renaming import renamed
from sonde.core.wording import plural
from sonde.stats.poincare import poincare_distance, to_ball

Metric = Literal["poincare", "euclidean", "cosine"]


@renamed(keep="share")
@torch.no_grad()
def relabel_unknown(
    x: Float[Tensor, "row dim"],
    label: Int[Tensor, "row"],
    unknown: int,
    metric: Metric = "poincare",
    keep: float = 1.0,
) -> Int[Tensor, "row"]:
    """Return labels in which unlabelled rows near the known classes are of class ``unknown``.

    For detectors of known objects whose other proposals hold unknown objects and background. A
    row's distance is that to the nearest centre of a class, and the radius is the distance that a
    fraction ``keep`` of the labelled rows does not exceed. Unlabelled rows within the radius are
    relabelled; those beyond it keep their label.

    Range        labelled rows never change, nor do rows with NaN or infinity.
    Cost         one distance for each row and class.
    Assumes      unknown objects lie nearer to known ones than background does.
    Differs      the paper's radius is that of all rows (``keep=1``); a centre is the mean of a
                 class's rows in place of a mean over a memory.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows of features.
    label : Int[Tensor, "row"]
        Negative for rows without a label.
    unknown : int
        Class of the relabelled rows.
    metric : {"poincare", "euclidean", "cosine"}, default="poincare"
        Distance between rows: poincare, euclidean or cosine.
    keep : float, default=1.0
        Fraction of the labelled rows that lies within the radius, in (0, 1].

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.4], [3.0, 3.0]])
    >>> relabel_unknown(x, torch.tensor([0, 0, -1, -1]), unknown=7).tolist()
    [0, 0, 7, -1]

    References
    ----------
    doan2024hypow
    """
    if metric not in get_args(Metric) or not 0 < keep <= 1:
        raise InputError(
            f"relabel_unknown: expected one of {', '.join(get_args(Metric))} and keep in (0, 1],"
            f" got {metric!r} and {keep}."
        )
    labelled = label >= 0
    if len(label) != len(x) or not bool(labelled.any()):
        raise InputError(
            f"relabel_unknown: expected a label for each of {len(x)} rows, some of them 0 or more, "
            f"got {plural(len(label), 'label')}, {int(labelled.sum())} of them 0 or more."
        )
    if not bool(x[labelled].isfinite().all()):
        raise InputError("relabel_unknown: expected finite labelled rows, got NaN or infinity.")
    rows = x.double()
    centre = torch.stack([rows[label == c].mean(0) for c in label[labelled].unique()])
    near = _distance(rows, centre, metric).amin(1)
    radius = near[labelled].sort().values[max(round(keep * int(labelled.sum())), 1) - 1]
    return torch.where(~labelled & (near <= radius), unknown, label)


def _distance(x: Tensor, y: Tensor, metric: str) -> Float[Tensor, "row row2"]:
    if metric == "poincare":
        return poincare_distance(to_ball(x), to_ball(y))
    if metric == "cosine":
        return 1 - normalize(x, dim=1) @ normalize(y, dim=1).T
    return (x.unsqueeze(1) - y).square().sum(-1).sqrt()
