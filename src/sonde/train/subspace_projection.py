"""Learn a new task without changing a model's outputs on the inputs of old tasks.

For tasks that come one after the other, without old data at hand. Running statistics of batch norms
are not protected: keep them in eval mode, or separate for each task.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from sonde.core.errors import InputError, SondeWarning
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.tap.hooks.session import Session

Layer = nn.Linear | nn.Conv2d


@final
class SubspaceProjection:
    """Keep updates of linear and convolution layers orthogonal to their inputs in old tasks.

    ``remember`` sums ``x x'`` over the inputs ``x`` of each layer (patches of a convolution, with a
    1 for the bias) and keeps the eigenvectors ``U`` that hold ``energy`` of the sum, beyond the
    directions known before. ``on`` takes ``(update) U U'`` away after each step of the optimiser,
    whatever the optimiser did to the gradient.

    Range        outputs on old inputs change by at most the energy left out.
    Cost         an eigendecomposition in the layer's input width for each task, two products a
                 step.
    Assumes      old inputs of a layer do not change, as they do not if all layers before it are
                 kept.
    Differs      from CUBER: no gate that admits updates along old inputs. It is the gradient
                 projection memory that CUBER extends, applied to the update in place of the
                 gradient.

    Parameters
    ----------
    energy : float, default=0.97
        Share of the second moment that is kept; 1 keeps every direction that occurred.

    References
    ----------
    saha2021gpm
    """

    paper: ClassVar[str] = "saha2021gpm"

    def __init__(self, energy: float = 0.97) -> None:
        self.energy = energy
        check_ranges(self, energy="(0, 1]")
        self.known: dict[str, Tensor] = {}

    @property
    def ranks(self) -> dict[str, int]:
        """Number of directions kept for the inputs of each layer."""
        return {name: basis.shape[1] for name, basis in self.known.items()}

    @torch.no_grad()
    def remember(self, model: Model | nn.Module, data: Iterable[Any]) -> None:
        """Keep the inputs that every layer gets on the batches of a task.

        Parameters
        ----------
        model : Model or nn.Module
        data : iterable of Tensor
            Batches that the model is called with.

        Raises
        ------
        InputError
            If no layer was reached.
        """
        module = model.module if isinstance(model, Model) else model
        sums: dict[str, Tensor] = {}
        reads = [
            (layer, lambda args, _, name=name, layer=layer: _add(sums, name, layer, args[0]))
            for name, layer in _layers(module).items()
        ]
        with Session(module, inputs=reads, reading=True, owner="SubspaceProjection"):
            for batch in data:
                module(batch)
        if not sums:
            raise InputError(
                "SubspaceProjection.remember: expected a batch, and linear or convolution layers "
                "that it reaches, got none."
            )
        for name, moment in sums.items():
            self.known[name] = self._extended(self.known.get(name), moment)

    @contextmanager
    def on(self, model: Model | nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[None]:
        """Project every update of the optimiser inside the block.

        Warns
        -----
        SondeWarning
            If the optimiser moves parameters of other layers, which are not projected.
        """
        module = model.module if isinstance(model, Model) else model
        layers = {name: _layers(module)[name] for name in self.known}
        _warn_of_free(module, layers.values(), optimiser)
        before: dict[str, Tensor] = {}

        def keep(*_: Any) -> None:
            before.update({name: _weights(layer).clone() for name, layer in layers.items()})

        def project(*_: Any) -> None:
            for name, layer in layers.items():
                basis = self.known[name]
                update = (_weights(layer) - before[name]).double()
                _put(layer, before[name].double() + update - update @ basis @ basis.T)

        handles = [
            optimiser.register_step_pre_hook(keep),
            optimiser.register_step_post_hook(project),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _extended(self, known: Tensor | None, moment: Tensor) -> Float[Tensor, "dim rank"]:
        """Return the basis with as many new directions as the energy of a task needs."""
        basis = moment.new_zeros(len(moment), 0) if known is None else known
        rest = torch.eye(len(moment), dtype=moment.dtype, device=moment.device) - basis @ basis.T
        values, vectors = torch.linalg.eigh(rest @ moment @ rest)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        total = moment.trace()
        held = total - values.sum() + values.cumsum(0)
        lacking = values.sum() > (1 - self.energy) * total
        n = int((held < self.energy * total * (1 - 1e-12)).sum()) + 1 if bool(lacking) else 0
        n = min(n, int((values > 1e-12 * total).sum()))
        return torch.linalg.qr(torch.cat((basis, vectors[:, :n]), 1))[0]


def _layers(module: nn.Module) -> dict[str, Layer]:
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }


def _warn_of_free(
    module: nn.Module, held: Iterable[Layer], optimiser: torch.optim.Optimizer
) -> None:
    """Warn of parameters that move unprojected: of norms, embeddings, attention in one matrix."""
    moved = {id(p) for group in optimiser.param_groups for p in group["params"] if p.requires_grad}
    moved -= {id(p) for layer in held for p in (layer.weight, layer.bias)}
    free = [name for name, p in module.named_parameters() if id(p) in moved]
    if free:
        first = ", ".join(free[:3]) + (" ..." if len(free) > 3 else "")
        warnings.warn(
            f"SubspaceProjection: {len(free)} parameters that the optimiser moves are not of the "
            f"layers that are held, so answers on old inputs may change: {first}. Freeze them, or "
            "leave them out of the optimiser.",
            SondeWarning,
            stacklevel=4,
        )


@torch.no_grad()
def _add(sums: dict[str, Tensor], name: str, layer: Layer, x: Tensor) -> None:
    """Add the products of a layer's inputs."""
    if isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InputError(f"SubspaceProjection: expected zero padding by number at {name}.")
        parts = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = parts.movedim(1, 2)
    rows = x.flatten(0, -2).double()
    rows = rows if layer.bias is None else pad(rows, (0, 1), value=1.0)
    sums[name] = sums.get(name, 0) + rows.T @ rows


@torch.no_grad()
def _weights(layer: Layer) -> Float[Tensor, "out dim"]:
    """Return weight and bias as a matrix on the layer's inputs."""
    flat = layer.weight.flatten(1)
    return flat if layer.bias is None else torch.cat((flat, layer.bias[:, None]), 1)


@torch.no_grad()
def _put(layer: Layer, whole: Tensor) -> None:
    n = layer.weight[0].numel()
    layer.weight.copy_(whole[:, :n].reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(whole[:, n])
