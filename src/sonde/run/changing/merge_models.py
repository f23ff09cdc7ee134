"""``sonde.merge_models``: merge several models of the same base, without any data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sonde.core.errors import InputError, near
from sonde.core.renaming import renamed
from sonde.data.loading import is_factory
from sonde.edit import Dare, Slerp, TaskArithmetic, Ties
from sonde.engine.progress import Bar
from sonde.run.reading.load import load
from sonde.weights import merging
from sonde.weights.folder import ModelFolder, check_output, folder_of
from sonde.weights.merging import Merged

Way = Literal["arithmetic", "ties", "dare", "slerp"]
USES = {
    "arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare": ("weight", "remove", "seed"),
    "slerp": ("weight",),
}
"""Which parameters a method reads."""
RULES = {"arithmetic": TaskArithmetic, "ties": Ties, "slerp": Slerp}


@renamed(remove="drop")
def merge_models(
    base: str,
    others: Sequence[str],
    output: str | Path,
    *,
    method: Way = "ties",
    keep: Sequence[str] = (),
    progress: bool = True,
    **parameters: float | int,
) -> Merged:
    """Write the merge of models that share a base. Memory stays below that of one model.

    The same as ``sonde edit merge``.

    Parameters
    ----------
    base : str
        Folder or name of the base, or ``package.module:factory``, whose models are merged whole in
        memory.
    others : sequence of str
        Models that were trained from it.
    output : path
        Folder for the merged model.
    method : {"ties", "arithmetic", "dare", "slerp"}
        Adds what the models agree on, all that they changed, a random tenth of it, or goes half way
        to one other model.
    keep : sequence of str
        Patterns of tensors that stay the base's, such as ``classifier.*``.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **parameters
        ``weight`` of what is added (arithmetic 0.3, ties 1) or the way to go (slerp 0.5),
        ``density``: fraction of entries that ties keeps (0.2), ``remove``: fraction of entries that
        dare removes (0.9), ``seed`` of the entries that dare removes (0).

    Raises
    ------
    InputError
        If there is no other model, a parameter is not read by the method, or the models differ in
        more than numbers.
    """
    if not others:
        raise InputError(
            f"edit merge: expected a base model and at least one fine-tuned model, got {base}."
        )
    rule = _rule(method, parameters)
    check_output(Path(output))
    first, *more = [load(word, device="cpu") if is_factory(word) else word
                    for word in (base, *others)]  # fmt: skip
    tensors = (
        ModelFolder.open(folder_of(first)).places
        if isinstance(first, str)
        else (first.module.state_dict())
    )
    with Bar("merge", len(tensors), progress) as bar:
        return merging.merge_models(first, more, rule, output, keep, bar.advance)


def _rule(method: Way, parameters: dict[str, Any]) -> Any:
    if method not in USES:
        raise InputError(
            f"edit merge: expected a method among {', '.join(USES)}, got {method!r}."
            f"{near(method, USES)}"
        )
    unused = [name for name in parameters if name not in USES[method]]
    if unused:
        raise InputError(
            f"--{unused[0]}: the method {method} has no such parameter. Leave --{unused[0]} out."
        )
    if method != "dare":
        return RULES[method](**parameters)
    how = dict(parameters)
    weight = {"weight": how.pop("weight")} if "weight" in how else {}
    return Dare(**how, then=TaskArithmetic(**weight))
