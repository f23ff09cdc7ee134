"""Labels for a retriever, from what each found item does to the loss of a reader."""

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.train.select import Select


@torch.no_grad()
def gain_labels(
    loss: Float[Tensor, "row item"],
    alone: Float[Tensor, "row"],
    temperature: float = 0.5,
    drop_harmful: bool = True,
) -> tuple[Float[Tensor, "row item"], Float[Tensor, "row"]]:
    """Return how much each retrieved item should count, by what it saves a reader.

    ``softmax((alone - loss) / temperature)`` over the items of a row. With ``drop_harmful`` items
    that raise the reader's loss get 0, and rows without any other item the weight 0. Lower the
    cross entropy of a retriever's scores with these labels, times the weight of the row.

    Range        labels [0, 1], which add up to 1 in rows of weight 1; weights 0 or 1.
    Cost         O(row item), after a forward of the reader for each item and one without.
    Assumes      losses of one reader on the same rows; a reader that also answers without items.
    Differs      from the paper, whose abstract names such labels and the dropping: softmax and
                 temperature are ours.

    Parameters
    ----------
    loss : Float[Tensor, "row item"]
        The reader's loss with each item.
    alone : Float[Tensor, "row"]
        The reader's loss without any item.
    temperature : float, default=0.5
        Above 0, in the unit of the losses; lower = the best item counts alone.
    drop_harmful : bool, default=True
        Whether items that raise the loss get 0.

    Examples
    --------
    >>> label, weight = gain_labels(torch.tensor([[0.2, 0.2, 3.0], [2.0, 2.0, 2.0]]), torch.ones(2))
    >>> label.tolist(), weight.tolist()
    ([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], [1.0, 0.0])

    References
    ----------
    guo2022unifer
    """
    if loss.ndim != 2 or alone.shape != loss.shape[:1] or not temperature > 0:
        raise InputError(
            "gain_labels: expected losses (row, item), one without items for each row and a "
            f"temperature above 0, got {tuple(loss.shape)}, {tuple(alone.shape)} and {temperature}."
        )
    without = alone[:, None].expand_as(loss)
    label = ((without - loss) / temperature).softmax(1)
    if drop_harmful:
        kept = Select("drop_harmful", minimum_rows=0)(loss.flatten(), without.flatten())
        assert isinstance(kept, Tensor)
        label = label * kept.reshape(loss.shape)
    total = label.sum(1, keepdim=True)
    return label / total.clamp(min=1e-12), (total[:, 0] > 0).to(loss)
