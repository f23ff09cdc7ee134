"""Cluster indices of sampled rows, of random halves of them, and with shuffled labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.stats.halves import half_error, random_halves
from sonde.stats.neighbours import distance_chunks
from sonde.stats.sampled_rows import LEAST_FOR_HALVES, SampledRows

NAMES = ("silhouette", "davies_bouldin", "calinski_harabasz", "dunn", "xie_beni", "eta2")


@dataclass(frozen=True)
class Labelings:
    """Labelings of a sample: the true labels, random halves of the rows, and shuffles.

    Classes are numbered from 0; a row with -1 is left out. Halves and shuffles move whole groups.
    """

    label: Int[Tensor, "labeling row"]
    group: Int[Tensor, "row"]
    n_classes: int
    n_halves: int

    @classmethod
    def of(cls, owner: str, rows: SampledRows) -> "Labelings":
        """Return the labelings of rows with labels of at least 0 in their last site."""
        names, label = torch.unique(rows.rows[-1][:, 0].cpu(), return_inverse=True)
        if len(names) < 2:
            raise InputError(
                f"{owner}: expected at least two classes, got {len(names)}. "
                "Pass labels, or check the label column."
            )
        halves = random_halves(rows.group) if rows.n_groups >= LEAST_FOR_HALVES else []
        shuffled = [
            torch.searchsorted(names, s.rows[-1][:, 0].cpu().contiguous()) for s in rows.shuffled()
        ]
        labelings = [label, *(torch.where(half, label, -1) for half in halves), *shuffled]
        return cls(torch.stack(labelings), rows.group, len(names), len(halves))

    @property
    def is_paired(self) -> Bool[Tensor, "class"]:
        """Whether a class has rows of two groups: without such pairs it has no inner distance."""
        pairs = torch.unique(torch.stack([self.label[0], self.group]), dim=1)
        return torch.bincount(pairs[0], minlength=self.n_classes) > 1

    @property
    def how(self) -> str:
        """Method that computed the standard error."""
        enough = f"{self.n_halves} random halves"
        return enough if self.n_halves else f"none: fewer than {LEAST_FOR_HALVES} groups"

    def spread(
        self, figure: Float[Tensor, "labeling *rest"]
    ) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"] | None, Float[Tensor, "*rest"]]:
        """Return an index with its standard error and null."""
        halves, shuffled = figure[1 : 1 + self.n_halves], figure[1 + self.n_halves :]
        error = half_error(halves, self.group) if self.n_halves else None
        return figure[0], error, shuffled.mean(0)


def labelled_rows(rows: SampledRows) -> tuple[SampledRows, tuple[str, ...]]:
    """Return the rows labelled at least 0 in the last site, and flags if others were removed."""
    is_labelled = rows.rows[-1][:, 0].cpu() >= 0
    missing = () if bool(is_labelled.all()) else ("unlabelled",)
    return rows.take(is_labelled), (*rows.flags, *missing)


def cluster_figures(
    x: Float[Tensor, "row dim"], labelings: Labelings
) -> Float[Tensor, "labeling 6"]:
    """Return the indices ``NAMES`` for each labeling, from one pass over the distances.

    Pairs of rows of one group do not enter ``silhouette`` and ``dunn``, which are NaN where no
    class has rows of two groups.
    """
    labels, group = labelings.label.to(x.device), labelings.group.to(x.device)
    x = x - x.mean(0)
    widths, largest = x.new_zeros(len(labels)), x.new_zeros(len(labels))
    near = x.new_full((len(labels),), torch.inf)
    for start, distance in distance_chunks(x, x):
        own = slice(start, start + len(distance))
        alike = group[own, None] == group
        low, high = distance.masked_fill(alike, torch.inf), distance.masked_fill_(alike, 0.0)
        for i, label in enumerate(labels):
            kept = label >= 0
            if not bool(kept[own].any()):
                continue
            whole = bool(kept.all())
            ends = (low, high) if whole else (low[kept[own]][:, kept], high[kept[own]][:, kept])
            same = label[own][kept[own], None] == label[kept]
            near[i] = torch.minimum(near[i], torch.where(same, torch.inf, ends[0]).amin())
            largest[i] = torch.maximum(largest[i], torch.where(same, ends[1], 0.0).amax())
            widths[i] += _silhouettes(ends[1], label[kept], group[kept], _chunk(kept, own)).sum()
    sums = torch.stack([_mean_figures(x, label, labelings.n_classes) for label in labels])
    paired = bool(labelings.is_paired.any())  # as shuffles move whole groups, of all labelings
    silhouette = widths / (labels >= 0).sum(1) if paired else torch.full_like(widths, torch.nan)
    dunn = near / largest if paired else torch.full_like(near, torch.nan)
    return torch.stack([silhouette, sums[:, 0], sums[:, 1], dunn, *sums[:, 2:].T], 1)


def _chunk(kept: Bool[Tensor, "row"], own: slice) -> slice:
    """Return the positions of a chunk's selected rows among all selected rows."""
    before = int(kept[: own.start].sum())
    return slice(before, before + int(kept[own].sum()))


def _silhouettes(
    distance: Float[Tensor, "chunk row"],
    label: Int[Tensor, "row"],
    group: Int[Tensor, "row"],
    own: slice,
) -> Float[Tensor, "chunk"]:
    """Return the silhouettes of a chunk's rows; distances within one group are 0.

    The silhouette is 0 if the row's class has no row of another group, or if the mean distances to
    its own and to the nearest class are 0.
    """
    member = torch.nn.functional.one_hot(label).to(distance)
    grouped = member.new_zeros(int(group.max()) + 1, member.shape[1]).index_add_(0, group, member)
    count = member.sum(0) - grouped[group[own]]
    mean = torch.where(count > 0, distance @ member / count, torch.inf)
    place = label[own, None]
    inside = mean.gather(1, place)[:, 0]
    outside = mean.scatter(1, place, torch.inf).amin(1)
    widest = torch.maximum(inside, outside)
    alone = torch.isinf(inside) | (widest == 0)
    return torch.where(alone, 0.0, (outside - inside) / widest)


def _mean_figures(
    x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], n_classes: int
) -> Float[Tensor, "4"]:
    """Return Davies-Bouldin, Calinski-Harabasz, Xie-Beni and eta2, from distances to means."""
    x, own = x[label >= 0], label[label >= 0]
    own = torch.unique(own, return_inverse=True)[1]
    size = torch.bincount(own).to(x)
    n, count = len(x), len(size)
    mean = x.new_zeros(count, x.shape[1]).index_add_(0, own, x) / size[:, None]
    length = torch.linalg.vector_norm(x - mean[own], dim=1)
    radius = x.new_zeros(count).index_add_(0, own, length) / size
    within = length.square().sum()
    between = size @ (mean - x.mean(0)).square().sum(1)
    apart = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(torch.inf)
    worst = ((radius[:, None] + radius) / apart).amax(1)
    ratio = (
        between / (count - 1) / (within / (n - count))
        if n > count
        else within.new_tensor(torch.nan)
    )
    nearest = within / (n * apart.amin().square())
    return torch.stack([worst.mean(), ratio, nearest, between / (between + within)])
