"""How far classes have collapsed onto their means."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.stats import ClassMomentsState

CUT = 1e-4
"""Directions in which the class means spread by less, as a share of the widest, are none."""


def class_collapse(classes: ClassMomentsState) -> Float[Tensor, ""]:
    """Return ``tr(S_W S_B^+) / classes`` of averages, the class means weighed alike."""
    within = classes.pooled / classes.weight.sum()
    inverse = torch.linalg.pinv(classes.mean - classes.mean.mean(0), rtol=CUT)
    return ((within @ inverse) * inverse).sum()
