"""Two models on the same inputs, for ``sonde compare`` and ``sonde scan --versus-model``."""

from typing import Any

from sonde.cli.options import Reading, Workers


def compared(
    names: tuple[str, str],
    data: str,
    reading: Reading,
    crew: Workers,
    others: tuple[str, ...] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Return the comparison of two models, schema ``sonde-compare/1``.

    Parameters
    ----------
    names : (str, str)
        The models as typed, the older one first.
    others : tuple of str
        Sites of the second model; by default those of the first.
    """
    from sonde.data import load, open_inputs
    from sonde.run.comparing.compare import compare
    from sonde.run.comparing.two_answers import compare_answers
    from sonde.run.comparing.two_models_document import two_models_document

    options = reading.model_options()
    first, second = (load(word, **options) for word in names)
    found = compare(
        first,
        second,
        data,
        other_sites=(others[0] if len(others) == 1 else [*others]) or None,
        running={**crew.worker_options(), "memory": crew.memory_bytes()},
        progress=progress,
        **reading.site_options(),
        **reading.data_options(),
    )
    known = reading.data_options()
    for name in ("check", "logits", "keep_special", "generate"):
        known.pop(name, None)
    inputs = [open_inputs(model, data, logits=True, **known) for model in (first, second)]
    answers = compare_answers(first, second, *inputs, progress=progress)
    return two_models_document(found, answers, names=names, data=data)
