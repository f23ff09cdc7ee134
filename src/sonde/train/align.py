"""Pull the states of a model towards those of a teacher, at any site of each.

For generative models trained beside a strong encoder, in the first part of the training. A small
classifier gains no speed from another classifier as its teacher.
"""

from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, mse_loss, normalize, smooth_l1_loss

from sonde.core.errors import InputError

Distance = Literal["cosine", "mse", "smooth_l1", "relational"]


@final
class Align(nn.Module):
    """Distance of the rows of a site to the rows of a target site, which gets no gradients.

    ``cosine``: mean of ``-cos(P(x), y)``. ``mse``, ``smooth_l1``: against the target's rows after a
    layer norm. ``relational``: mean over pairs of rows of ``(cos(x_i, x_j) - cos(y_i, y_j))^2``,
    for which the widths may differ.

    Range        [-1, 1] for ``cosine``, else [0, inf); lower = more alike.
    Cost         one product of rows and projector; ``relational`` O(rows^2 dim).
    Assumes      rows of both sites in the same order.
    Batching     mean; ``relational``: pair.

    Parameters
    ----------
    distance : {"cosine", "mse", "smooth_l1", "relational"}, default="cosine"
    projector : {"none", "linear", "mlp"}, default="none"
        Learned map P of the rows of ``x``; its input width is found at the first call.
    width : int, optional
        Width of the target, needed for a projector.
    hidden : int, default=2048
        Width of the two inner layers of the "mlp".

    References
    ----------
    yu2024repa
    """

    paper: ClassVar[str] = "yu2024repa"
    batching: ClassVar[str] = "mean"
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"distance": "smooth_l1"},
        {"distance": "relational"},
    )

    def __init__(
        self,
        distance: Distance = "cosine",
        projector: Literal["none", "linear", "mlp"] = "none",
        width: int | None = None,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        if distance not in ("cosine", "mse", "smooth_l1", "relational"):
            raise InputError(f"Align: expected a known distance, got {distance!r}.")
        if projector != "none" and width is None:
            raise InputError("Align: expected width, the target's, beside a projector. Pass it.")
        self.distance = distance
        layers: list[nn.Module] = []
        if projector == "linear":
            layers = [nn.LazyLinear(width or 0)]
        elif projector == "mlp":
            inner = nn.Linear(hidden, hidden)
            layers = [nn.LazyLinear(hidden), nn.SiLU(), inner, nn.SiLU()]
            layers.append(nn.Linear(hidden, width or 0))
        self.projector = nn.Sequential(*layers)

    def forward(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]
    ) -> Float[Tensor, ""]:
        """Return the distance of rows to their targets."""
        target, rows = y.detach(), self.projector(x)
        if self.distance == "relational":
            own, other = (normalize(part, dim=1) for part in (rows, target))
            return (own @ own.T - other @ other.T).square().mean()
        if rows.shape[1] != target.shape[1]:
            raise InputError(
                f"Align: expected rows as wide as the target, {target.shape[1]}, got "
                f"{rows.shape[1]}. Pass projector='linear', width={target.shape[1]}, or "
                "distance='relational'."
            )
        if self.distance == "cosine":
            return -cosine_similarity(rows, target, dim=1, eps=1e-12).mean()
        target = layer_norm(target, target.shape[1:])
        if self.distance == "mse":
            return mse_loss(rows, target)
        return smooth_l1_loss(rows, target, beta=2.0)
