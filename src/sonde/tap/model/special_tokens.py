"""Special tokens beside image patches: class, distillation and register tokens.

They come from parameters, not from the image: before anything is mixed, they are the same for any
two images. So two images of noise tell where they lie, and the parameters tell which is the class
token.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Site
from sonde.tap.model.axes import Axes, config_grid
from sonde.tap.model.probe import Probe, TensorLayout
from sonde.tap.model.structure import CONFIGURED
from sonde.tap.model.vary import SizeChange, sized
from sonde.tap.model.watch import watch

SAME = SizeChange("none")
N_ROWS = 2
CLOSE = 1e-2
"""Largest distance, in lengths of a token, to what it is made of: narrow types round."""
MOST_ROWS = 2**14
CLASS, REGISTER = ("cls", "class"), ("reg", "storage")
MOST_EXTRA = 16


@dataclass(frozen=True)
class SpecialTokens:
    """Finds the tokens that are not patches, for the sites of one model.

    Parameters
    ----------
    model : Model
    probe : Probe
    batch : InputBatch
    grid : (int, int) or None
        Lines and columns of patches, where inputs, configuration or first layer tell.
    """

    model: Model
    probe: Probe
    batch: InputBatch
    grid: tuple[int, int] | None
    _found: dict[Hashable, Axes] = field(default_factory=dict)

    def marked(self, axes: Axes, leaf: TensorLayout, where: str) -> Axes:
        """Return axes with the number of tokens before and after the patches, and the class token.

        Raises
        ------
        SiteError
            If there are more tokens than patches and it is not known which of them are no patches.
        """
        has_noise = any(
            isinstance(v, Tensor) and v.is_floating_point() for v in _values(self.batch)
        )
        if "patch" not in axes.words or "dim" not in axes.words or not has_noise:
            return axes
        key = _but(leaf.shape, axes.words.index("dim")), axes.words
        if key not in self._found:
            self._found[key] = self._looked_for(axes, leaf, where)
        return self._found[key]

    def _looked_for(self, axes: Axes, leaf: TensorLayout, where: str) -> Axes:
        n = leaf.shape[axes.words.index("patch")]
        extra = 0 if self.grid is None else n - self.grid[0] * self.grid[1]
        if extra and extra == self._configured():
            return replace(axes, prefix=extra, cls=0)
        x = self._first_of(axes, leaf)
        same = [] if x is None else _same(x)
        is_image = any(isinstance(v, Tensor) and v.ndim == 4 for v in _values(self.batch))
        from_weights = [] if x is None else [i for i in same if self._owners(x[0, i])]
        is_odd = from_weights != same and self.grid is not None and len(same) != extra
        is_few = 0 < extra <= MOST_EXTRA
        unexplained = not is_image or (is_odd and not is_few)
        if len(same) == n or (from_weights != same and unexplained):
            return axes  # learned queries; steps that are constant for another reason, as padding
        if x is not None and self._are_looked_up(x[0], same):
            return axes
        before = next((i for i in range(n) if i not in same), n)
        behind = next((i for i in range(n) if n - 1 - i not in same), n)
        is_scattered = bool(same) and before + behind != len(same)
        if is_scattered or (is_few and (is_odd or not same)):
            n_other = extra if is_odd or not same else len(same)
            raise SiteError(
                f"Site: expected patches at {where}, got {n} tokens, of which {n_other} are "
                "not patches and have unknown positions. Read all tokens as one row (reducer "
                "'flat'), or read a module whose tokens are only patches."
            )
        cls = None if x is None else self._class_token(x[0], same)
        return replace(axes, prefix=before, suffix=behind, cls=cls)

    def _configured(self) -> int:
        """Return how many tokens a model of transformers with registers has before the patches.

        There the class token comes first, then the registers. A module of somebody's own may have
        them in any order, whatever its configuration counts.
        """
        config = getattr(self.model.config, "vision_config", self.model.config)
        n_registers = getattr(config, "num_register_tokens", None)
        is_theirs = type(self.model.module).__module__.startswith(CONFIGURED)
        return 1 + n_registers if is_theirs and isinstance(n_registers, int) else 0

    def _first_of(self, axes: Axes, leaf: TensorLayout) -> Tensor | None:
        """Return the first tensor with as many tokens as ``leaf``, on two noise images.

        Its shape is (image, patch, dim); in later ones the tokens are mixed.
        """
        dim = axes.words.index("dim")
        calls = (
            (call.end if port == "out" else call.start, Site(path, i, port, key))
            for path, several in self.probe.trace.items()
            for i, call in enumerate(several)
            for port, key, one in (("in", None, call.input), *_outputs(call.outputs))
            if one is not None and _but(one.shape, dim) == _but(leaf.shape, dim)
        )
        _, site = min(calls, key=lambda item: item[0], default=(0, None))
        if site is None:
            return None
        args, kwargs = sized(self.batch, SAME, N_ROWS, 0)
        generator = torch.Generator().manual_seed(0)
        args = tuple(_noisy(x, generator) for x in args)
        kwargs = {name: _noisy(x, generator) for name, x in kwargs.items()}
        noise = replace(self.batch, args=args, kwargs=kwargs)
        try:
            x = watch(self.model.module, noise, [site], place=self.probe.place).tensors[str(site)]
        except Exception:  # whatever a model raises on noise: numbers that it takes for ids, say
            return None
        if _but(tuple(x.shape), dim) != _but(leaf.shape, dim):
            return None
        return axes.last_dim(x).flatten(1, -2).float().cpu()

    def _are_looked_up(self, x: Tensor, same: Sequence[int]) -> bool:
        """Return whether tokens that differ between images are also rows of parameters.

        If so, the model took the noise for ids, and some tokens agree by chance.
        """
        own = next((i for i in range(len(x)) if i not in same), None)
        return bool(same) and own is not None and bool(self._owners(x[own]))

    def _class_token(self, x: Tensor, same: Sequence[int]) -> int | None:
        """Return the class token's position: the token of that name, or the only special one."""
        owners = {i: self._owners(x[i]) for i in same}
        named = [i for i in same if _names(owners[i], CLASS)]
        if len(named) == 1:
            return named[0]
        is_alone = len(same) == 1 and not _names(owners[same[0]], REGISTER)
        return same[0] if is_alone else None

    def _owners(self, token: Tensor) -> list[str]:
        """Return the parameters that hold a token as a row, perhaps plus its position embedding."""
        rows = dict(self._rows(len(token)))
        others = torch.cat([torch.zeros(1, len(token)), *rows.values()])
        near = CLOSE * float(token.norm())
        return [
            name
            for name, own in rows.items()
            if "pos" not in name and bool(torch.cdist(token.float() - own, others).amin() <= near)
        ]

    def _rows(self, dim: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters of a width that may hold one embedding per row."""
        for path, module in self.model.module.named_modules():
            for name, p in module.named_parameters(recurse=False):
                is_layer = name in ("weight", "bias") and not isinstance(module, nn.Embedding)
                if p.shape[-1:] == (dim,) and not is_layer and 0 < p.numel() <= MOST_ROWS * dim:
                    yield f"{path}.{name}".lower(), p.detach().reshape(-1, dim).float().cpu()


def patch_grid(model: Model, probe: Probe, batch: InputBatch) -> tuple[int, int] | None:
    """Return height and width in patches, from inputs, configuration, or the first layer."""
    if batch.grid is not None:
        return batch.grid
    pixels = next(
        (x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor) and x.ndim == 4),
        None,
    )
    grid = config_grid(model.config, pixels)
    if grid is not None or pixels is None:
        return grid
    for path, calls in probe.trace.items():
        layer = probe.names.modules[path]
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride != (1, 1):
            shape = calls[0].outputs[""].shape
            return shape[2], shape[3]
    return None


def _names(owners: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether a parameter name's last part contains one of the words."""
    return any(word in owner.rpartition(".")[2] for owner in owners for word in words)


def _but(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the number of axes, and all sizes but one."""
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


def _outputs(outputs: dict[str, TensorLayout]) -> Iterator[tuple[str, str | None, TensorLayout]]:
    yield from (("out", key or None, leaf) for key, leaf in outputs.items())


def _values(batch: InputBatch) -> list[object]:
    return [*batch.args, *batch.kwargs.values()]


def _noisy(x: object, generator: torch.Generator) -> object:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    return x + torch.randn(x.shape, generator=generator).to(x)


def _same(x: Tensor) -> list[int]:
    """Return the tokens that two images share up to rounding."""
    apart = (x[0] - x[1]).abs().amax(-1)
    return (apart <= 1e-9 + 1e-6 * x.abs().amax()).nonzero().flatten().tolist()
