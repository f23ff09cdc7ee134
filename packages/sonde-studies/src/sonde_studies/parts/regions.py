"""Maps of a convolutional net as groups of channels, and heads on these groups."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from sonde import InputError, Model, Tap
from sonde.data import ItemInputs
from sonde.layers import StateGraph
from sonde.tap import place_of
from sonde_studies.worlds.learning import drawn, minimise

HIDDEN = 24
Maps = Float[Tensor, "row channel high wide"]
Nodes = Float[Tensor, "row node place"]
Graph = Literal["", "correlation", "attention"]


def maps_of(recipe: str, model: Model, inputs: ItemInputs, site: str) -> Maps:
    """Return the channels of all images at a site, as (picture, channel, high, wide).

    Raises
    ------
    InputError
        If the site gives no maps, or pictures differ in size.
    """
    parts = list[Tensor]()
    for batch in inputs.batches(0, len(inputs)):
        args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
        with torch.no_grad(), Tap(model, site) as tap:
            model.module(*args, **kwargs)
        (states,) = tap.rows.values()
        parts.append(states.detach().cpu().float())
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) != 1 or parts[0].ndim != 4:
        raise InputError(
            f"{recipe}: expected maps (channel, high, wide) of one size at {site}, got "
            f"{', '.join(map(str, sorted(shapes)))}. Name a convolution: site."
        )
    return torch.cat(parts)


def nodes_of(maps: Maps, group: Int[Tensor, "channel"]) -> Nodes:
    """Return the mean map of each group of channels."""
    member = one_hot(group, int(group.max()) + 1).to(maps)
    return torch.einsum("nchw,cg->nghw", maps, member / member.sum(0)).flatten(2)


def read_by_head(
    x: Nodes,
    y: Float[Tensor, "row output"],
    held: Nodes,
    seed: int,
    steps: int,
    graph: Graph = "",
) -> Float[Tensor, "row output"]:
    """Return the test logits of a head with a hidden layer, with or without a graph.

    Parameters
    ----------
    x : Float[Tensor, "row node place"]
        What it learns from.
    y : Float[Tensor, "row output"]
        1 where an output is true, else 0.
    held : Float[Tensor, "row node place"]
    seed, steps : int
        Of the training.
    graph : {"", "correlation", "attention"}, default=""
        Pass messages, twice, before the head: between nodes that correlate, or by self-attention
        and through a learned map.
    """
    _, n, dim = x.shape
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)

    def made() -> nn.Sequential:
        attends = graph == "attention"
        over = (
            StateGraph(dim, graph, threshold=0.3, steps=2, mapped=attends)
            if graph
            else nn.Identity()
        )
        return nn.Sequential(
            over, nn.Flatten(), nn.Linear(n * dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, y.shape[1])
        )

    head = drawn(made, seed)

    def loss(rows: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(head((x[rows] - mean) / spread), y[rows])

    optimised = [p for p in head.parameters() if p.requires_grad]
    minimise(loss, optimised, len(x), steps=steps, seed=seed)
    with torch.no_grad():
        return head((held - mean) / spread)


def coherence(nodes: Nodes, high: int) -> float:
    """Return Moran's I over neighbouring positions, averaged over maps that vary.

    Parameters
    ----------
    nodes : Float[Tensor, "row node place"]
    high : int
        Lines of a map.
    """
    rest = nodes - nodes.mean(2, keepdim=True)
    maps = rest.reshape(-1, high, nodes.shape[2] // high).double()
    total = maps.square().mean((1, 2))
    near = [
        (maps[:, 1:] * maps[:, :-1]).mean((1, 2)),
        (maps[..., 1:] * maps[..., :-1]).mean((1, 2)),
    ]
    varies = total > 1e-12
    return float(((near[0] + near[1]) / 2 / total.clamp(min=1e-12))[varies].mean())
