"""Learn a new task without changing a model's outputs on the inputs of old tasks.

For tasks that come one after the other, without old data at hand. Running statistics of batch norms
are not protected: keep them in eval mode, or separate for each task.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad, unfold

from sonde.core.errors import InputError, SondeWarning
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.tap.hooks.session import Session
from sonde.train._layer_weights import Layer, joined_weights, layers_of, put_weights
from sonde.train.scaled_weights import ScaledWeights

Loss = Callable[[Any], Tensor]


@final
@dataclass(frozen=True)
class Agreement:
    """How a new task's gradient in a layer relates to an old task.

    Parameters
    ----------
    cosine : float
        Of the new gradient and the old task's, in [-1, 1].
    share : float
        Norm of the new gradient's part along the old task's inputs, over its norm, in [0, 1].
    """

    cosine: float
    share: float


@renamed(threshold="share")
@final
class SubspaceProjection:
    """Keep updates of linear and convolution layers orthogonal to their inputs in old tasks.

    ``remember`` sums ``x x'`` over the inputs ``x`` of each layer (patches of a convolution, with a
    1 for the bias) and keeps the eigenvectors ``U`` that hold ``energy`` of the sum, beyond the
    directions known before. ``on`` takes ``(update) U U'`` away after each step of the optimiser,
    whatever the optimiser did to the gradient.

    With ``admit``, a task's own directions in a layer are left open where the new task moves the
    layer along them and its loss falls with the new one's: if ``agreement`` has a share of at least
    ``threshold`` and a cosine of at least ``admit``. Old tasks can then gain from new ones. Add
    ``weight * penalty()`` of the block to the loss to bound how far these weights move. Where the
    share is as large and the cosine smaller, ``scaled_weights`` lets the new task use the old
    weights in a form of its own.

    Range        outputs on old inputs change by at most the energy left out.
    Cost         an eigendecomposition in the layer's input width for each task, two products a
                 step.
    Assumes      old inputs of a layer do not change, as they do not if all layers before it are
                 kept.
    Differs      from the papers: applied to the update in place of the gradient. From CUBER: the
                 conditions are tested where ``agreement`` is called, not in each epoch, and an old
                 task's directions are its own in full.

    Parameters
    ----------
    energy : float, default=0.97
        Share of the second moment that is kept; 1 keeps every direction that occurred.
    admit : float, optional
        Cosine in [-1, 1] from which an old task admits updates along its inputs.
    threshold : float, default=0.5
        Smallest fraction of the new gradient that lies along an old task's inputs, in [0, 1], for
        ``admit`` to apply; 0 tests the cosine alone.

    Examples
    --------
    >>> layer, old = nn.Linear(3, 1, bias=False), torch.tensor([[1.0, 0.0, 0.0]])
    >>> memory, before = SubspaceProjection(energy=1.0), layer(old).detach()
    >>> memory.remember(layer, [old])
    >>> optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> with memory.on(layer, optimiser):
    ...     layer(torch.ones(4, 3)).sum().backward()
    ...     optimiser.step()
    >>> memory.ranks, torch.equal(layer(old), before)
    ({'': 1}, True)

    References
    ----------
    saha2021gpm, lin2022cuber
    """

    paper: ClassVar[str] = "saha2021gpm"
    variants: ClassVar[Mapping[str, str]] = {"admit=0.0": "lin2022cuber"}

    def __init__(
        self, energy: float = 0.97, admit: float | None = None, threshold: float = 0.5
    ) -> None:
        self.energy, self.admit, self.threshold = energy, admit, threshold
        check_ranges(self, energy="(0, 1]", threshold="[0, 1]")
        if admit is not None:
            check_ranges(self, admit="[-1, 1]")
        self.known: dict[str, Tensor] = {}
        self.tasks: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    @property
    def ranks(self) -> dict[str, int]:
        """Number of directions that are kept for the inputs of each layer."""
        return {name: basis.shape[1] for name, basis in self.known.items()}

    def remember(
        self, model: Model | nn.Module, data: Iterable[Any], loss: Loss | None = None
    ) -> None:
        """Store the directions of every layer's inputs on the batches of a task.

        Parameters
        ----------
        model : Model or nn.Module
        data : iterable
            Batches: tensors, or mappings of the model's arguments. With ``loss``, whatever it
            takes, such as ``(inputs, labels)``.
        loss : callable, optional
            The task's loss of a batch, which runs the model; needed for ``admit``.

        Raises
        ------
        InputError
            If no layer was reached, a loss is missing, the data are no batches of inputs, the model
            has other layers than before, or a layer's inputs or gradients are not finite.
        """
        if self.admit is not None and loss is None:
            raise InputError(
                "SubspaceProjection.remember: expected loss=, because admit compares "
                "gradients, got none. Pass loss=, a function of a batch."
            )
        layers, module = self._layers("remember", model)
        sums: dict[str, Tensor] = {}
        reads = [
            (layer, lambda args, _, name=name, layer=layer: _add(sums, name, layer, args[0]))
            for name, layer in layers.items()
        ]
        with Session(module, inputs=reads, reading=True, owner="SubspaceProjection"):
            gradients = dict[str, Tensor]()
            if loss is not None:
                gradients = _gradients("remember", layers, data, loss)
            else:
                with torch.no_grad():
                    for batch in _batches("remember", data):
                        args, kwargs = _call(batch)
                        module(*args, **kwargs)
        if not sums:
            raise InputError(
                "SubspaceProjection.remember: expected a batch, and linear or convolution layers "
                "that it reaches, got none."
            )
        for name, moment in sums.items():
            if not bool(moment.isfinite().all()):
                raise InputError(
                    f"SubspaceProjection.remember: expected finite inputs of layer {name!r}, got "
                    "NaN or infinite ones. Leave out the rows that lead to them, or check the "
                    "model's weights."
                )
        for name, moment in sums.items():
            self.known[name] = self._extended(self.known.get(name), moment)
        if self.admit is not None:
            own = {name: self._extended(None, moment) for name, moment in sums.items()}
            self.tasks.append((own, gradients))

    def agreement(
        self, model: Model | nn.Module, data: Iterable[Any], loss: Loss
    ) -> dict[str, list[Agreement]]:
        """Return, for each layer and old task, how a new task's gradient relates to it.

        Parameters
        ----------
        model : Model or nn.Module
        data : iterable
            Batches of the new task.
        loss : callable
            Its loss of a batch, which runs the model.

        Raises
        ------
        InputError
            If ``admit`` is None, the model has other layers than those of the old tasks, there is
            no batch, or a gradient is not finite.
        """
        self._require_admit("agreement")
        layers, _ = self._layers("agreement", model)
        new = _gradients("agreement", layers, data, loss)
        return {
            name: [_compared(new[name], own[name], old[name]) for own, old in self.tasks]
            for name in self.known
        }

    def scaled_weights(
        self, model: Model | nn.Module, agreement: Mapping[str, Sequence[Agreement]]
    ) -> ScaledWeights:
        """Return scaled weights for a new task, along the inputs of old tasks that disagree.

        A layer is scaled along the inputs of each old task whose share reaches ``share`` but whose
        cosine stays below ``admit``. Give the parameters to the optimiser, train inside both
        ``memory.on(...)`` and ``scaled.on(model)``, and call ``remember`` inside
        ``scaled.on(model)``. The task needs ``scaled.on(model)`` whenever it runs; old tasks must
        run without it. With ``admit=1.0`` nothing is admitted, as in TRGP.

        Parameters
        ----------
        model : Model or nn.Module
        agreement : mapping of str to sequence of Agreement
            What ``agreement`` returned for the new task.

        Raises
        ------
        InputError
            If ``admit`` is None, the agreement is one with other tasks, or the model has other
            layers than those of the old tasks.
        """
        self._require_admit("scaled_weights")
        layers, _ = self._layers("scaled_weights", model)
        return ScaledWeights(
            {
                name: [
                    own[name].to(layers[name].weight)
                    for (own, _), admits, one in zip(
                        self.tasks, self._gates(name, agreement), agreement[name], strict=True
                    )
                    if one.share >= self.threshold and not admits
                ]
                for name in self.known
            }
        )

    @contextmanager
    def on(
        self,
        model: Model | nn.Module,
        optimiser: torch.optim.Optimizer,
        agreement: Mapping[str, Sequence[Agreement]] | None = None,
    ) -> Iterator[Callable[[], Tensor]]:
        """Project every update of the optimiser inside the block.

        Parameters
        ----------
        model : Model or nn.Module
        optimiser : torch.optim.Optimizer
        agreement : mapping of str to sequence of Agreement, optional
            What ``agreement`` returned for the new task; needed for ``admit``.

        Yields
        ------
        callable
            ``penalty()``: the norm of what the weights have moved along each admitted task's
            inputs since the block began, summed over tasks and layers, with a gradient; 0 without
            an admitted task.

        Raises
        ------
        InputError
            If ``agreement`` is missing or one with other tasks, the model has other layers than
            those of the old tasks, or the optimiser has no parameter of these layers.

        Warns
        -----
        SondeWarning
            If the optimiser moves parameters of other layers, which are not projected.
        """
        tracked, module = self._layers("on", model)
        layers = {name: tracked[name] for name in self.known}
        _require_own(layers.values(), optimiser)
        gates = {name: self._gates(name, agreement) for name in layers}
        held = {name: self._held(name, gates[name]) for name in layers}
        if layers:
            _warn_of_free(module, layers.values(), optimiser)
        before: dict[str, Tensor] = {}

        def current() -> dict[str, Tensor]:
            return {name: joined_weights(layer).detach().clone() for name, layer in layers.items()}

        def keep(*_: Any) -> None:
            before.update(current())

        def project(*_: Any) -> None:
            for name, layer in layers.items():
                basis = held[name]
                update = (joined_weights(layer).detach() - before[name]).double()
                put_weights(layer, before[name].double() + update - update @ basis @ basis.T)

        start = current()

        def penalty() -> Tensor:
            moved = [
                ((joined_weights(layers[name]) - start[name]) @ own[name].to(start[name])).norm()
                for name, admitted in gates.items()
                for (own, _), admits in zip(self.tasks, admitted, strict=True)
                if admits
            ]
            none = next(iter(start.values()), torch.zeros(()))
            return torch.stack(moved).sum() if moved else none.new_zeros(())

        handles = [
            optimiser.register_step_pre_hook(keep),
            optimiser.register_step_post_hook(project),
        ]
        try:
            yield penalty
        finally:
            for handle in handles:
                handle.remove()

    def _gates(self, name: str, agreement: Mapping[str, Sequence[Agreement]] | None) -> list[bool]:
        """Return, for each old task, whether it admits updates of a layer along its inputs."""
        if self.admit is None:
            return []
        own = None if agreement is None else agreement.get(name)
        if own is None or len(own) != len(self.tasks):
            raise InputError(
                f"SubspaceProjection: expected the agreement with {len(self.tasks)} tasks at layer "
                f"{name!r}, got {None if own is None else len(own)}. Pass "
                "memory.agreement(model, data, loss)."
            )
        return [a.cosine >= self.admit and a.share >= self.threshold for a in own]

    def _require_admit(self, method: str) -> None:
        """Raise if old tasks cannot be compared with new ones."""
        if self.admit is None:
            raise InputError(
                f"SubspaceProjection.{method}: expected admit=, because old tasks are compared by "
                "it, got None. Make the memory with admit=, 1.0 to admit none, before remember."
            )

    def _layers(self, method: str, model: Any) -> tuple[dict[str, Layer], nn.Module]:
        """Return a model's layers and its module; raise if remembered layers do not fit."""
        module = model.module if isinstance(model, Model) else model
        if not isinstance(module, nn.Module):
            raise InputError(
                f"SubspaceProjection.{method}: expected a Model or an nn.Module, got "
                f"{type(module).__name__}. Pass sonde.load(...) or your own module."
            )
        layers = layers_of(module)
        for name, basis in self.known.items():
            width = joined_weights(layers[name]).shape[1] if name in layers else None
            if width != len(basis):
                raise InputError(
                    f"SubspaceProjection.{method}: expected the model of the old tasks, whose "
                    f"layer {name!r} has {len(basis)} inputs with the bias, got one with {width}. "
                    "Pass that model, or make a new memory."
                )
        return layers, module

    def _held(self, name: str, gates: Sequence[bool]) -> Float[Tensor, "dim rank"]:
        """Return the directions of the tasks that do not admit updates."""
        if self.admit is None:
            return self.known[name]
        kept = [own[name] for (own, _), admits in zip(self.tasks, gates, strict=True) if not admits]
        if not kept:
            return self.known[name][:, :0]
        left, size, _ = torch.linalg.svd(torch.cat(kept, 1), full_matrices=False)
        return left[:, size > 1e-9 * size[0]]

    def _extended(self, known: Tensor | None, moment: Tensor) -> Float[Tensor, "dim rank"]:
        """Return the basis, extended by the directions that hold enough energy of a task."""
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


def _compared(new: Tensor, own: Tensor, old: Tensor) -> Agreement:
    """Return the cosine of two gradients, and the new one's share along the old task's inputs."""
    cosine = cosine_similarity(new.flatten(), old.flatten(), 0, 1e-300)
    share = (new @ own).norm() / new.norm().clamp(min=1e-300)
    return Agreement(float(cosine), float(share))


def _batches(method: str, data: Any) -> Iterable[Any]:
    """Return the data if they are batches, not a single batch or a source of sonde."""
    if isinstance(data, Tensor | Mapping | Inputs | str) or not isinstance(data, Iterable):
        raise InputError(
            f"SubspaceProjection.{method}: expected an iterable of batches, got "
            f"{type(data).__name__}. Pass a list, such as [inputs]; of open_inputs, the "
            "args[0] or kwargs of each of data.batches(0, len(data))."
        )
    return data


def _call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward pass."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list | InputBatch):
        raise InputError(
            "SubspaceProjection.remember: expected batches of inputs alone, tensors or mappings of "
            f"arguments, got {type(batch).__name__}. Pass inputs alone, such as "
            "(x for x, y in data), or loss=, a function of a batch that runs the model."
        )
    return (batch,), {}


def _gradients(
    method: str, layers: Mapping[str, Layer], data: Iterable[Any], loss: Loss
) -> dict[str, Float[Tensor, "out dim"]]:
    """Return the mean gradient of a loss by the weight and bias of each layer, over batches."""
    parameters = [p for layer in layers.values() for p in (layer.weight, layer.bias)]
    some, n = [p for p in parameters if p is not None and p.requires_grad], 0
    sums = {id(p): torch.zeros_like(p, dtype=torch.float64) for p in some}
    for batch in _batches(method, data):
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(batch), some, allow_unused=True)
        n += 1
        for p, g in zip(some, gradients, strict=True):
            sums[id(p)] += 0 if g is None else g.double()

    def mean(p: Tensor) -> Float[Tensor, "out dim"]:
        total = sums.get(id(p), torch.zeros_like(p, dtype=torch.float64))
        return total.reshape(len(p), -1) / n

    if not n:
        raise InputError(f"SubspaceProjection.{method}: expected a batch or more, got none.")
    means = {
        name: torch.cat([mean(p) for p in (layer.weight, layer.bias) if p is not None], 1)
        for name, layer in layers.items()
    }
    for name, gradient in means.items():
        if not bool(gradient.isfinite().all()):
            raise InputError(
                f"SubspaceProjection.{method}: expected a finite gradient of the loss at layer "
                f"{name!r}, got NaN or infinite values. Leave out the rows that lead to them."
            )
    return means


def _require_own(held: Iterable[Layer], optimiser: torch.optim.Optimizer) -> None:
    """Raise if layers can be trained, but not by this optimiser."""
    own = [p for layer in held for p in (layer.weight, layer.bias) if p is not None]
    moved = {id(p) for group in optimiser.param_groups for p in group["params"]}
    if any(p.requires_grad for p in own) and not any(id(p) in moved for p in own):
        raise InputError(
            "SubspaceProjection.on: expected an optimiser of the model's protected layers, got one "
            "without any of their parameters. Make it from model.parameters()."
        )


def _warn_of_free(
    module: nn.Module, held: Iterable[Layer], optimiser: torch.optim.Optimizer
) -> None:
    """Warn of trainable parameters without projection: in norms, embeddings, joint attention."""
    moved = {id(p) for group in optimiser.param_groups for p in group["params"] if p.requires_grad}
    moved -= {id(p) for layer in held for p in (layer.weight, layer.bias)}
    free = [name for name, p in module.named_parameters() if id(p) in moved]
    if free:
        first = ", ".join(free[:3]) + (" ..." if len(free) > 3 else "")
        warnings.warn(
            f"SubspaceProjection: {len(free)} parameters of the optimiser lie outside the "
            f"protected layers, so outputs on old inputs may change: {first}. Freeze these "
            "parameters, or leave them out of the optimiser.",
            SondeWarning,
            stacklevel=4,
        )


@torch.no_grad()
def _add(sums: dict[str, Tensor], name: str, layer: Layer, x: Tensor) -> None:
    """Add the outer products of a layer's inputs."""
    if isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InputError(
                f"SubspaceProjection: expected zero padding given as numbers at {name}, got "
                "another padding."
            )
        parts = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = parts.movedim(1, 2)
    rows = x.flatten(0, -2).double()
    rows = rows if layer.bias is None else pad(rows, (0, 1), value=1.0)
    sums[name] = sums.get(name, 0) + rows.T @ rows
