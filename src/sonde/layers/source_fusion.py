"""One hidden state of several sources: states of encoders and numbers made by hand.

Gradients reach the encoders, so that encoders and fusion are trained in one loss. For encoders that
stay as they are, a linear head on their states side by side does as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer


@final
class SourceFusion(Layer):
    """Map each source into a shared space, and the codes side by side into a shared state.

    A code is ``c_i = relu(A_i x_i + a_i)``, and the state ``relu(J [c_1 .. c_k] + b)``. A source is
    what an encoder returns, or numbers that were made by hand. With ``rebuilds`` the shared state
    also rebuilds what the encoders read, one linear map for each: encoders, fusion and maps are
    then autoencoders with one code, and ``rebuild_loss`` is added to the loss of the task.

    Cost         ``dim (widths + sources dim)`` products a row, and ``dim rebuilds`` to rebuild.
    Assumes      numbers made by hand are standardised; every source is there in every row.
    Differs      from TI-CNN: one layer after the codes, and no dropout; from recurrent autoencoder
                 ensembles: what is rebuilt is mapped at once, not step by step.

    Parameters
    ----------
    widths : sequence of int
        Width of each source.
    dim : int
        Width of the codes and of the shared state.
    rebuilds : sequence of int, default=()
        Width of each input that the state rebuilds; empty: it rebuilds none.

    Examples
    --------
    >>> layer = SourceFusion((16, 3), 8)
    >>> layer(torch.randn(5, 16), torch.randn(5, 3)).shape
    torch.Size([5, 8])

    References
    ----------
    yang2018ticnn, dehshibi2022pain
    """

    paper: ClassVar[str] = "yang2018ticnn"
    variants: ClassVar[Mapping[str, str]] = {"rebuilds=(4,)": "dehshibi2022pain"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"widths": (4, 3), "dim": 5},
        {"widths": (4, 3, 2), "dim": 5, "rebuilds": (6, 2)},
    )
    insertable = False

    def __init__(self, widths: Sequence[int], dim: int, rebuilds: Sequence[int] = ()) -> None:
        super().__init__()
        if not widths or min(*widths, *rebuilds, dim) < 1:
            raise InputError(
                "SourceFusion: expected at least one source, and widths of at least 1, got "
                f"widths={tuple(widths)}, dim={dim} and rebuilds={tuple(rebuilds)}."
            )
        self.dim, self.widths, self.rebuilds = dim, tuple(widths), tuple(rebuilds)
        names = [f"source{i}" for i in range(len(widths))]
        for name, width in zip(names, widths, strict=True):
            setattr(self, name, int(width))
        object.__setattr__(self, "layout", tuple(f"row {name}" for name in names))
        self.maps = nn.ModuleList(nn.Linear(width, dim) for width in widths)
        self.join = nn.Linear(len(self.widths) * dim, dim)
        self.back = nn.ModuleList(nn.Linear(dim, width) for width in rebuilds)

    def forward(self, *sources: Float[Tensor, "row _"]) -> Float[Tensor, "row dim"]:
        """Return the shared state of each row.

        Parameters
        ----------
        *sources : Float[Tensor, "row width"]
            In the order of ``widths``.
        """
        if len(sources) != len(self.widths):
            raise ShapeError(
                f"SourceFusion.forward: expected {len(self.widths)} sources of widths "
                f"{self.widths}, got {len(sources)}. Pass one tensor for each source."
            )
        codes = [part(x).relu() for part, x in zip(self.maps, sources, strict=True)]
        return self.join(torch.cat(codes, 1)).relu()

    def rebuild_loss(
        self, state: Float[Tensor, "row dim"], *inputs: Float[Tensor, "row _"]
    ) -> Float[Tensor, ""]:
        """Return the squared error of the rebuilt inputs: a mean over inputs of means over numbers.

        Parameters
        ----------
        state : Float[Tensor, "row dim"]
            The shared state.
        *inputs : Float[Tensor, "row width"]
            What each encoder read, flat, in the order of ``rebuilds``.

        Raises
        ------
        InputError
            If the layer rebuilds nothing.
        ShapeError
            If there are other inputs than the layer rebuilds.
        """
        if not self.rebuilds:
            raise InputError("SourceFusion.rebuild_loss: expected a layer with rebuilds, got none.")
        if tuple(x.shape[1] for x in inputs) != self.rebuilds:
            raise ShapeError(
                f"SourceFusion.rebuild_loss: expected inputs of widths {self.rebuilds}, got "
                f"{tuple(x.shape[1] for x in inputs)}."
            )
        errors = [
            (part(state) - x).square().mean() for part, x in zip(self.back, inputs, strict=True)
        ]
        return torch.stack(errors).mean()
