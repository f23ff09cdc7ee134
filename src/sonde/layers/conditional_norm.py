"""Normalisation whose gain and bias depend on a condition."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError
from sonde.layers.conditions import ConditionedLayer

Norm = Literal["layer", "rms", "group", "instance", "none"]
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@final
class ConditionalNorm(ConditionedLayer):
    """Normalise states with a gain and a bias that depend on a condition.

    ``(g + dg(c)) norm(x) + b + db(c)``; ``dg`` and ``db`` come from a linear map of the condition
    that starts at zero, so that a fresh layer is the norm it wraps, bit for bit. ``norm="none"``
    only modulates: it can be inserted. Without a condition the shifts are left out. In an inserted
    layer the condition comes from ``sonde.layers.conditioned``.

    Cost         the norm twice; 2 condition dim products for each row.
    Assumes      the condition as (row, condition); ``layer``, ``rms`` and ``none`` also take one
                 vector for each position.
    Differs      from LaVi: the condition of each position is given, and not found here from the
                 tokens and the picture.

    Parameters
    ----------
    dim : int
        Width of the states.
    condition : int, default=0
        Width of the condition; 0 is the plain norm.
    norm : {"layer", "rms", "group", "instance", "none"}, default="layer"
        ``group`` and ``instance`` take maps (row, dim, *space).
    groups : int, default=2
        Number of groups of ``norm="group"``.
    eps : float or None, default=1e-5
        None is the machine epsilon of the dtype, for ``rms``.

    References
    ----------
    lavi2025
    """

    paper: ClassVar[str] = "lavi2025"
    variants: ClassVar[Mapping[str, str]] = {"condition=0": "ba2016layernorm"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 4, "condition": 3},
        {"dim": 4, "condition": 3, "norm": "rms"},
        {"dim": 4, "condition": 3, "norm": "group"},
        {"dim": 4, "condition": 3, "norm": "instance"},
        {"dim": 4, "condition": 3, "norm": "none"},
    )
    layout: ClassVar[tuple[str, ...]] = ("row *axes dim", "row *axes condition")

    def __init__(
        self,
        dim: int,
        condition: int = 0,
        norm: Norm = "layer",
        groups: int = 2,
        eps: float | None = 1e-5,
    ) -> None:
        super().__init__()
        self.dim, self.condition = dim, condition
        self.norm: nn.Module
        if norm in ("layer", "rms"):
            self.norm = (
                nn.RMSNorm(dim, eps=eps) if norm == "rms" else nn.LayerNorm(dim, eps=eps or 1e-5)
            )
        elif norm in ("group", "instance"):
            self.norm = nn.GroupNorm(groups if norm == "group" else dim, dim, eps=eps or 1e-5)
        elif norm == "none":
            self.norm = nn.Identity()
        else:
            raise InputError(f"ConditionalNorm: expected a norm of {Norm}, got {norm!r}.")
        self._begin()

    @classmethod
    def of(cls, norm: nn.Module, condition: int) -> "ConditionalNorm":
        """Return a layer around a model's norm; ``.norm`` is this norm, to restore it.

        Parameters
        ----------
        norm : nn.LayerNorm, RMSNorm or GroupNorm
            Its parameters are shared.
        condition : int
        """
        shape = getattr(norm, "normalized_shape", (0,))
        if not isinstance(norm, NORMS) or len(shape) != 1:
            raise InputError(
                f"ConditionalNorm.of: expected a layer, RMS or group norm over one axis, got "
                f"{norm}. Write ConditionalNorm(dim, condition) for a norm of its own."
            )
        if isinstance(norm, nn.GroupNorm):
            new = cls(norm.num_channels, condition, "group", norm.num_groups, norm.eps)
        else:
            kind = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
            new = cls(shape[0], condition, kind, eps=norm.eps)
        new.norm = norm
        return new

    def _begin(self) -> None:
        self.on_units = not isinstance(self.norm, nn.GroupNorm)
        self.insertable = isinstance(self.norm, nn.Identity)
        words = "row *axes dim" if self.on_units else "row dim *space"
        with_condition = self.condition and not self.insertable
        of_condition = "row *axes condition" if self.on_units else "row condition"
        layout = (words, of_condition) if with_condition else (words,)
        object.__setattr__(self, "layout", layout)
        self.shift = nn.Linear(self.condition, 2 * self.dim) if self.condition else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)
            nn.init.zeros_(self.shift.bias)

    def forward(
        self, x: Float[Tensor, "row *axes"], condition: Tensor | None = None
    ) -> Float[Tensor, "row *axes"]:
        """Return the normalised states with the condition's gain and bias.

        Parameters
        ----------
        x : Float[Tensor, "row *axes"]
        condition : Tensor, optional
            (row, condition), or one vector for each position.
        """
        c = self.condition_for(x, condition, x.ndim - 2 if self.on_units else 0)
        base = self.norm(x)
        if c is None or self.shift is None:
            return base
        gain, bias = self.shift(c).chunk(2, dim=-1)
        if not self.on_units:
            gain, bias = (v.reshape(*v.shape, *[1] * (x.ndim - 2)) for v in (gain, bias))
        return base + gain * self._plain(x) + bias

    def _plain(self, x: Tensor) -> Tensor:
        """Return the normalised states without the norm's own gain and bias."""
        norm: Any = self.norm
        eps = cast(float, getattr(norm, "eps", 0.0))
        if isinstance(norm, nn.LayerNorm):
            return functional.layer_norm(x, (self.dim,), eps=eps)
        if isinstance(norm, nn.RMSNorm):
            return functional.rms_norm(x, (self.dim,), eps=eps)
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(x, norm.num_groups, eps=eps)
        return x
