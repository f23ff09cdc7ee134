"""Module names for users: wrapper prefixes removed, aliases mapped to the first name."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_checkpoint_wrapped"}
)
HOLDERS = frozenset({"DistributedDataParallel", "DataParallel", "AveragedModel"})
PEFT_PREFIX = ("base_model", "model")
FULLY_SHARDED = "FSDP"


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without the one that ``fully_shard`` puts around it.

    Parameters
    ----------
    module : Module
        Module whose class is asked for.
    """
    kind = type(module)
    wrapped = [base for base in kind.__bases__ if kind.__name__ == FULLY_SHARDED + base.__name__]
    return wrapped[0] if wrapped else kind


@dataclass(frozen=True, eq=False)
class ModuleNames:
    """The modules of a model by the names that sonde prints and accepts.

    Parameters
    ----------
    root : nn.Module
    """

    root: nn.Module

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by stripped name, aliases included, in order of registration."""
        by_name: dict[str, nn.Module] = {}
        for name, module in _named(self.root, ()):
            by_name[name] = module
        return by_name

    @cached_property
    def canonical(self) -> dict[int, str]:
        """The first stripped name of each module, by its id."""
        first: dict[int, str] = {}
        for name, module in self.modules.items():
            first.setdefault(id(module), name)
        return first

    @cached_property
    def raw(self) -> dict[str, str]:
        """The stripped name of each module, by its full name with wrapper prefixes."""
        names = {id(m): n for n, m in self.modules.items()}
        full = self.root.named_modules(remove_duplicate=False)
        return {name: self.canonical.get(id(m), names.get(id(m), "")) for name, m in full}

    @cached_property
    def _makes_weights(self) -> frozenset[int]:
        """The ids of modules that compute weights of others (spectral norm, for instance)."""
        parametrizations = [m.parametrizations for m in self.modules.values() if is_parametrized(m)]
        return frozenset(
            id(m) for one in parametrizations if isinstance(one, nn.Module) for m in one.modules()
        )

    def primary(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each module once, by its first name, except modules that compute weights."""
        for name, module in self.modules.items():
            if self.canonical[id(module)] == name and id(module) not in self._makes_weights:
                yield name, module

    def children(self, path: str) -> list[str]:
        """Return the names of the direct children of ``path`` that may receive data."""
        prefix = f"{path}." if path else ""
        named = self.modules[path].named_children()
        return [f"{prefix}{name}" for name, m in named if id(m) not in self._makes_weights]


def _named(root: nn.Module, path: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    yield ".".join(path), root
    is_peft = type(root).__module__.startswith("peft.") and not path
    for name, child in root._modules.items():
        if child is None:
            continue
        transparent = name in WRAPPERS or (name == "module" and type(root).__name__ in HOLDERS)
        if is_peft and name == PEFT_PREFIX[0]:
            yield from _peft(child, path)
        else:
            yield from _named(child, path if transparent else (*path, name))


def _peft(base: nn.Module, path: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    inner = base._modules.get(PEFT_PREFIX[1])
    if inner is None:
        yield from _named(base, path)
    else:
        yield from _named(inner, path)
