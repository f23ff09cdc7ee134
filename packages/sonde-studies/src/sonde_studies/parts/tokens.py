"""Features of a text from a language model's token predictions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde import Model, read
from sonde.stats import TOKEN_METRICS

NAMES = (*TOKEN_METRICS, *(f"spread of {name}" for name in TOKEN_METRICS), "least log_p")
LEAST_SHARE = 0.2


def text_features(
    model: Model, texts: Any, **options: Any
) -> tuple[Float[Tensor, "text feature"], Float[Tensor, "text"]]:
    """Return the features ``NAMES`` of each text, in data order, and its tokens.

    ``least log_p`` is the mean over the least likely fifth of the tokens. A long text is cut.
    """
    stream = read(model, texts, reducer="predictions", long="truncate", check=False, **options)
    (key,) = (site.key for site in stream.schema)
    made: dict[int, Tensor] = {}
    for batch in stream:
        for i in range(len(batch)):
            x = batch.rows[key][batch.example[key] == i].double()
            least = x[:, 0].sort().values[: max(1, round(LEAST_SHARE * len(x)))].mean()
            found = torch.cat([x.mean(0), x.std(0, unbiased=False), least[None]])
            made[int(batch.order[i])] = torch.cat([found, torch.tensor([len(x)]).double()])
    order = sorted(made)
    if stream.source_rows is not None:
        order.sort(key=lambda i: int(stream.source_rows[i]))  # pyright: ignore
    rows = torch.stack([made[i] for i in order])
    return rows[:, :-1], rows[:, -1]
