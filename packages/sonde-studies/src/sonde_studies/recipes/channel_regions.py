"""Groups of correlated channels, against the mean over the image."""

from typing import Any

import numpy as np
import torch

from sonde import Model, read
from sonde.core import marks
from sonde.data import open_inputs
from sonde.measure import UnitClusters
from sonde.report import Answer
from sonde_studies.parts.choice import unless_untold
from sonde_studies.parts.figures import ACCURACY, gained, is_sure, names
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of
from sonde_studies.parts.regions import coherence, maps_of, nodes_of, read_by_head
from sonde_studies.parts.rows import apart, check_classes

QUESTION = "Do regions of channels say more than their mean?"
LEAST, TEST = 60, 0.4
MEAN, PLAIN, GRAPH, LOT = "mean over places", "regions", "graph of regions", "groups by lot"


@copies_once()
def channel_regions(
    model: Model,
    data: Any,
    *,
    site: str = "auto",
    regions: int = 8,
    steps: int = 500,
    label_column: str | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Read the label from maps as regions of channels, and from their mean, which pooling keeps.

    Regions are channels that correlate over places. Heads of one hidden layer read the label from
    the mean of each channel, the map of each region, the same with a graph that passes messages
    between regions that correlate, and groups of channels by lot. Four tenths of the rows judge.

    Example: sonde recipe channel-regions MODEL PICTURES --site features.6 -o regions.html

    Parameters
    ----------
    model : Model
        A convolutional net. It stays as it is.
    data : str, path or iterable
        Labelled pictures.
    site : str, default="auto"
        Where the maps are read; "auto" is after the last block.
    regions : int, default=8
        Number of regions.
    steps : int, default=500
        Steps of training of each head.
    label_column : str, optional
        Column of the class, where its name does not say so.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge, groups by lot and the heads.
    """
    options: dict[str, Any] = {"label_column": label_column, "limit": limit}
    options |= {"group_column": group_column}
    inputs = open_inputs(model, data, **options)
    label = torch.cat([batch.label for batch in inputs.batches(0, len(inputs))])
    check_classes("channel_regions", label.numpy(), LEAST)
    key = read(model, data, sites=site, check=False, **options).schema[-1].key
    maps = maps_of("channel_regions", model, inputs, key)
    owner = owners_of(data, group_column, limit)[inputs.source_rows]
    kept, held = apart(label.numpy(), TEST, seed, owner=owner)
    n_channels, high = maps.shape[1], maps.shape[2]
    units = maps[kept].movedim(1, 3).reshape(-1, n_channels)
    group = UnitClusters(k=min(regions, n_channels)).fit(units).cluster
    lot = group[torch.randperm(n_channels, generator=torch.Generator().manual_seed(seed))]
    nodes, by_lot = nodes_of(maps, group), nodes_of(maps, lot)
    arms = {MEAN: maps.mean((2, 3))[:, None], PLAIN: nodes, GRAPH: nodes, LOT: by_lot}
    y, right = torch.nn.functional.one_hot(label).float(), dict[str, Any]()
    for arm, x in arms.items():
        graph = "correlation" if arm in (GRAPH, LOT) else ""
        said = read_by_head(x[kept], y[kept], x[held], seed, steps, graph)
        right[arm] = (said.argmax(1) == label[held]).numpy()
    score = {arm: float(np.mean(r)) for arm, r in right.items()}
    near = {GRAPH: coherence(nodes[held], high), LOT: coherence(by_lot[held], high)}
    table = [
        {"read from": arm, "accuracy": v, "Moran's I": near.get(arm)} for arm, v in score.items()
    ]
    points = [{"read from": arm, "accuracy": v} for arm, v in score.items()]
    gain = right[GRAPH] * 1.0 - right[MEAN]
    verdict = "regions say more" if is_sure(gain) else "the mean will do"
    return Answer(
        question=QUESTION,
        **unless_untold(verdict, right, label[held]),
        sentence=f"A graph of regions tells the label of {score[GRAPH]:.1%} of {len(held)} rows, "
        f"the mean over places of {score[MEAN]:.1%}, groups of channels by lot of "
        f"{score[LOT]:.1%}. Neighbouring places of a region correlate with {near[GRAPH]:.2f}, of "
        f"groups by lot with {near[LOT]:.2f}.",
        **gained(gain),
        rows=tuple(table),
        drawn=marks("Accuracy by what is read", points, ACCURACY, names("read from"), size=90),
        facts={"site": key, "channels": str(n_channels), "regions": str(len(group.unique()))}
        | groups_told(owner),
        advice=(
            "What regions gain over groups by lot is due to the grouping; what both gain over the "
            "mean is due to places, which any map keeps.",
        ),
    )
