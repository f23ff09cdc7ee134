"""Names of a checkpoint's tensors, and the names that loading gives them in a model.

transformers renames tensors when it opens a checkpoint, and joins, splits or transposes some;
``save_pretrained`` does the reverse. Here both ways are asked of transformers itself.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sonde.data._model_kind import config_of
from sonde.data._versions import converted, used_rules

Values = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Joined:
    """Stored tensors from which loading computes other tensors, such as stacked experts.

    Parameters
    ----------
    stored : tuple of str
        Names in the checkpoint.
    loaded : mapping of str to Tensor
        Names in the model, and empty tensors of their shapes.
    load : callable
        Compute the loaded tensors from the stored tensors.
    """

    stored: tuple[str, ...]
    loaded: Values
    load: Callable[[Values], dict[str, Tensor]]


class StoredNames:
    """Mapping between the tensor names of a checkpoint and of its model.

    Parameters
    ----------
    module : nn.Module or None
        The model that the checkpoint opens as; for ``store`` a model of ours, such as one on the
        meta device. None, or a module that is not of transformers, keeps all names.
    stored : mapping of str to Tensor
        Empty tensors of the checkpoint's shapes, by name.
    """

    def __init__(self, module: nn.Module | None, stored: Values) -> None:
        self._module: Any = None if module is None or config_of(module) is None else module
        self.loaded: dict[str, str] = {}
        """The name in the model of each stored tensor that is taken as it is."""
        self.joined: list[Joined] = []
        self._used: list[Any] = []
        if self._module is None:
            self.loaded = {name: name for name in stored}
        else:
            self._match(stored)

    def name_for(self, name: str, like: str | None = None) -> str:
        """Return the name under which a new tensor of the model is stored.

        Parameters
        ----------
        name : str
            In the model.
        like : str, optional
            Name in the model of a tensor that the checkpoint holds, whose prefix is followed.
        """
        places = {loaded: stored for stored, loaded in self.loaded.items()}
        if name in places:
            return places[name]
        stored = places.get(like, like) if like is not None else None
        if like is not None and stored is not None:
            if like.endswith(stored) and name.startswith(prefix := like[: -len(stored)]):
                return name.removeprefix(prefix)
            if stored.endswith(like):
                return stored[: -len(like)] + name
        for rule in self._reversed():
            name, _ = rule.rename_source_key(name)
        return name

    def store(self, values: Values) -> dict[str, Tensor]:
        """Return a model's tensors under their stored names, joined or split like those."""
        if self._module is None:
            return dict(values)
        from transformers.core_model_loading import revert_weight_conversion

        self._module._weight_conversions = self._used  # the rules that fitted this checkpoint
        return revert_weight_conversion(self._module, dict(values))

    def _reversed(self) -> list[Any]:
        from transformers.core_model_loading import WeightRenaming

        rules = getattr(self._module, "_weight_conversions", None) or []
        return [
            rule.reverse_transform() for rule in rules[::-1] if isinstance(rule, WeightRenaming)
        ]

    def _match(self, stored: Values) -> None:
        """Rename every stored tensor as loading does."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(self._module)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        own, prefix = self._module.state_dict(), self._module.base_model_prefix
        parts: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in sorted(stored, key=dot_natural_key):  # some rules depend on the order
            loaded, pattern = rename_source_key(name, renamings, converters, prefix, own)
            if loaded not in own and name in own:
                loaded, pattern = rename_source_key(name, [], [], prefix, own)
            if pattern is not None and loaded in own:
                parts[loaded].append((pattern, name))
            else:
                self.loaded[name] = loaded if loaded in own else self._placed(loaded)
        for loaded, members in parts.items():
            self.joined.append(self._join(by_pattern[members[0][0]], loaded, members, stored))
        self._used = used_rules(rules)

    def _placed(self, name: str) -> str:
        """Return the name of a tensor that the model lacks, with its module's prefix."""
        prefix = self._module.base_model_prefix
        path = name.rpartition(".")[0]
        for full in (path, f"{prefix}.{path}"):
            try:
                self._module.get_submodule(full)
            except AttributeError:
                continue
            return f"{full}.{name.rpartition('.')[2]}" if full else name
        return name

    def _join(self, rule: Any, loaded: str, found: list[tuple[str, str]], stored: Values) -> Joined:
        module = self._module

        def load(values: Values) -> dict[str, Tensor]:
            own = copy.deepcopy(rule)
            for pattern, name in found:
                own.add_tensor(loaded, name, pattern, values[name])
            joined = converted(own.convert(loaded, model=module, config=module.config))
            return {name: x[0] if isinstance(x, list) else x for name, x in joined.items()}

        names = tuple(name for _, name in found)
        try:
            sample = load({name: stored[name] for name in names})
        except Exception:  # whatever an operation raises for tensors without numbers
            sample = {loaded: module.state_dict()[loaded]}
        return Joined(names, sample, load)
