"""Several drafts that a language model writes after each prompt, and their quality.

The model itself judges how likely the drafts are; what each draft costs is counted in rows that the
model computes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.edit import linearity
from sonde_studies._written import generated, likelihood


def drafts_of(
    model: Any, prompts: Int[Tensor, "text pos"], new: int, how: dict[str, Any]
) -> tuple[Int[Tensor, "text draft pos2"], int]:
    """Return drafts with their prompts, and the number of one-token rows that the model computed.

    Parameters
    ----------
    model : nn.Module
        A causal language model of ``transformers`` with a head ``lm_head``.
    prompts : Int[Tensor, "text pos"]
    new : int
        Tokens of each draft after its prompt.
    how : dict
        Options of ``generate``, such as ``num_return_sequences``.
    """
    rows: list[int] = []
    counter = model.lm_head.register_forward_hook(lambda *a: rows.append(len(a[2])))
    try:
        ids = generated(model, prompts, new, **how)
    finally:
        counter.remove()
    return ids.unflatten(0, (len(prompts), -1)), sum(rows)


def judged(
    model: nn.Module,
    drafts: Int[Tensor, "text draft pos"],
    texts: Int[Tensor, "text pos"],
    given: int,
    more: int,
) -> dict[str, float]:
    """Return the quality of the drafts of each text.

    The mean and the best log-probability a token after the ``given`` ones; the fraction of texts
    with a draft that begins with the next ``more`` tokens of the true text; and the mean number of
    different drafts.
    """
    likely = likelihood(model, drafts.flatten(0, 1), given).unflatten(0, drafts.shape[:2])
    following = slice(given, given + more)
    hit = (drafts[:, :, following] == texts[:, None, following]).all(2).any(1)
    kinds = [len({tuple(one) for one in some.tolist()}) for some in drafts]
    return {
        "mean": float(likely.mean()),
        "best": float(likely.amax(1).mean()),
        "next bytes": float(hit.double().mean()),
        "different": float(np.mean(kinds)),
    }


def mixture_cosines(model: Any, prompts: Int[Tensor, "two pos"]) -> Float[Tensor, "layer"]:
    """Return the linearity cosines of an equal mix of the last tokens of two prompts.

    Both tokens follow the first prompt.
    """
    ids = prompts[:1].repeat(2, 1)
    ids[:, -1] = prompts[:, -1]
    return linearity(model, ids, torch.tensor([0.5, 0.5]))
