"""Forward passes without dropout, even if no module's flag shows the dropout."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import nn
from torch.overrides import TorchFunctionMode

_DROPOUTS: Final = frozenset(
    f"{kind}dropout{more}{place}"
    for kind in ("", "alpha_", "feature_", "feature_alpha_", "native_")
    for more in ("", "1d", "2d", "3d")
    for place in ("", "_")
)


class _WithoutDropout(TorchFunctionMode):
    """Replaces every dropout by the identity."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, given = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in _DROPOUTS:
            x = args[0] if args else given["input"]
            return (x, None) if name.startswith("native") else x
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            given |= {"dropout_p": 0.0} if len(args) <= 4 else {}
        elif name == "multi_head_attention_forward" and "training" in given:
            given["training"] = False
        return func(*args, **given)


@contextmanager
def without_dropout(root: nn.Module) -> Iterator[None]:
    """Run forward passes without dropout, with all modules but batch norms in eval mode."""
    norms = nn.modules.batchnorm._BatchNorm
    changed = [m for m in root.modules() if m.training and not isinstance(m, norms)]
    try:
        for module in changed:
            module.training = False
        with _WithoutDropout():
            yield
    finally:
        for module in changed:
            module.training = True
