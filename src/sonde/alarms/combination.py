"""One p-value from several dependent p-values of a row, valid or nearly valid.

Fisher's sum is not here: on dependent layers it alarms several times as often as it promises. To
add up logarithms, calibrate the sum (``sonde.alarms.fuse``), which is the better choice anyway.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor


def bonferroni(p: Any) -> Float[Tensor, "row"]:
    """Return ``m min p`` of each row: valid under any dependence.

    Parameters
    ----------
    p : array (row, m)
        p-values of one row by sites or detectors.

    Examples
    --------
    >>> round(float(bonferroni([[0.01, 0.04, 0.20]])), 6)
    0.03
    """
    values = _checked("bonferroni", p)
    return (values.shape[1] * values.amin(1)).clamp(max=1.0)


def simes(p: Any) -> Float[Tensor, "row"]:
    """Return ``min_i m p_(i) / i`` of each row: valid under positive dependence.

    Parameters
    ----------
    p : array (row, m)
        P-values of each row, one column for each site, in (0, 1].

    Examples
    --------
    >>> round(float(simes([[0.01, 0.04, 0.20]])), 6)
    0.03

    References
    ----------
    simes1986improved
    """
    ordered = _checked("simes", p).sort(dim=1).values
    m = ordered.shape[1]
    return (ordered * m / torch.arange(1, m + 1, dtype=torch.float64)).amin(1)


def twice_mean(p: Any) -> Float[Tensor, "row"]:
    """Return twice the mean of each row: valid under any dependence.

    Parameters
    ----------
    p : array (row, m)
        P-values of each row, one column for each site, in (0, 1].

    Examples
    --------
    >>> round(float(twice_mean([[0.01, 0.04, 0.20]])), 6)
    0.166667

    References
    ----------
    vovk2020combining
    """
    return (2 * _checked("twice_mean", p).mean(1)).clamp(max=1.0)


def cauchy(p: Any) -> Float[Tensor, "row"]:
    """Return the tail of a Cauchy variable at ``mean tan((1/2 - p) pi)``: nearly valid for small p.

    p-values above ``1 - min(1/100, 1/m^2)`` are set to this bound: a site that sees nothing unusual
    may have the conformal p-value 1, which would outweigh all other sites. This adds at most 2 % to
    the rate of false alarms. With or without the bound, this rate is up to twice ``alpha`` on sites
    of middling correlation, and grows with the number of sites. Use ``fuse`` if the rate has to
    hold.

    Parameters
    ----------
    p : array (row, m)
        P-values of each row, one column for each site, in (0, 1].

    Examples
    --------
    >>> round(float(cauchy([[0.01, 0.04, 0.20]])), 6)
    0.023186

    References
    ----------
    liu2020cauchy
    """
    values = _checked("cauchy", p)
    values = values.clamp(max=1 - min(0.01, values.shape[1] ** -2))
    t = torch.tan((0.5 - values) * torch.pi).mean(1)
    return torch.atan2(torch.ones_like(t), t) / torch.pi


def _checked(name: str, p: Any) -> Float[Tensor, "row m"]:
    values = as_tensor(name, p, "p-values").double()
    if values.ndim != 2 or values.shape[1] == 0 or not bool(((values > 0) & (values <= 1)).all()):
        raise InputError(
            f"{name}: expected p-values in (0, 1] as (row, m), got shape {tuple(values.shape)}."
        )
    return values
