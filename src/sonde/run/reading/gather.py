"""``sonde.gather``: read a stream's rows into memory in data order, with labels and logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.core.wording import plural

DELAY_SECONDS = 2


@dataclass(frozen=True)
class Gathered:
    """All rows of a stream, one row for each example, in data order.

    Parameters
    ----------
    rows : dict of str to Float[Tensor, "row dim"]
        By the key of the site.
    item : Int[Tensor, "row"]
        Which item of the data a row comes from; a long text that was cut has several rows.
    label : Int[Tensor, "row"]
        Class number; -1 is none.
    length : Int[Tensor, "row"] or None
        Tokens of the example.
    logits : Float[Tensor, "row class"] or None
    label_names : tuple of str
        The name of each class number; empty if classes have no names.
    """

    rows: dict[str, Float[Tensor, "_row _dim"]]
    item: Int[Tensor, "row"]
    label: Int[Tensor, "row"]
    length: Int[Tensor, "row"] | None = None
    logits: Float[Tensor, "row class"] | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.item)

    @property
    def last(self) -> Float[Tensor, "row dim"]:
        """The rows of the last site, in float64."""
        return next(reversed(self.rows.values())).double()

    def pooled(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "item dim"]:
        """Return the mean over the rows of each item, for instance the chunks of a long text.

        Rows count by their length where it is known; an item without a row gives zeros.

        Parameters
        ----------
        x : Float[Tensor, "row dim"]
            In the order of ``item``, e.g. ``last``.
        """
        weight = torch.ones(len(self)) if self.length is None else self.length
        weight = weight.to(x)[:, None]
        total, n = (x.new_zeros(int(self.item.max()) + 1, k) for k in (x.shape[1], 1))
        total.index_add_(0, self.item, x * weight)
        return total / n.index_add_(0, self.item, weight).clamp(min=1e-12)


def gather(stream: Stream, progress: bool = True) -> Gathered:
    """Return all rows of a stream at once, for data that fit into memory.

    Parameters
    ----------
    stream : Stream
        With one row for each example, as the reducers ``mean``, ``last`` and ``cls`` give.
    progress : bool, default=True
        A bar on stderr after two seconds.

    Raises
    ------
    InputError
        If an example has several rows, or the stream has no example.

    Examples
    --------
    >>> from sonde import read
    >>> found = gather(read("sonde:digits", "sonde:digits/test", limit=8))
    >>> found.rows["vit.layers.0:out"].shape, found.label.tolist()
    (torch.Size([8, 64]), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    parts: dict[str, list[Tensor]] = {site.key: [] for site in stream.schema}
    order, label, length, logits = [], [], [], []
    with tqdm(total=len(stream), delay=DELAY_SECONDS, disable=not progress, unit="example") as bar:
        for batch in stream:
            for key, rows in batch.rows.items():
                if not torch.equal(batch.example[key], torch.arange(len(batch))):
                    raise InputError(
                        f"gather: expected one row for each example, got {len(rows)} rows of "
                        f"{plural(len(batch), 'example')} at {key}. Read with reducer='mean'."
                    )
                parts[key].append(rows)
            order.append(batch.order)
            label.append(batch.label)
            length += [] if batch.length is None else [batch.length]
            logits += [] if batch.logits is None else [batch.logits]
            bar.update(len(batch))
    if not order:
        raise InputError(
            "gather: expected at least one example, got none. Check the data and --limit."
        )
    planned = torch.cat(order)
    source = stream.source_rows
    item = planned if source is None else torch.from_numpy(source[planned.numpy()])
    kept = torch.argsort(item * (int(planned.max()) + 1) + planned)

    def sorted_rows(several: list[Tensor]) -> Tensor:
        return torch.cat(several)[kept]

    return Gathered(
        {key: sorted_rows(rows) for key, rows in parts.items()},
        item[kept],
        sorted_rows(label),
        sorted_rows(length) if length else None,
        sorted_rows(logits) if logits else None,
        stream.label_names,
    )
