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
    first: Any = None,
) -> dict[str, Any]:
    """Return the comparison of two models, schema ``sonde-compare/1``.

    Parameters
    ----------
    names : (str, str)
        The models as typed, the older one first.
    others : tuple of str
        Sites of the second model; by default those of the first.
    first : Model, optional
        The older model, if it is open already.
    """
    from sonde.run.comparing.compare import compare
    from sonde.run.comparing.model_difference import model_difference
    from sonde.run.comparing.two_answers import compare_answers, compare_numbers
    from sonde.run.comparing.two_models_document import two_models_document
    from sonde.run.reading.load import load

    options = reading.model_options()
    first = load(names[0], **options) if first is None else first
    second = load(names[1], **options)
    comparison = compare(
        first,
        second,
        data,
        other_sites=(others[0] if len(others) == 1 else [*others]) or None,
        **crew.worker_options(),
        memory=crew.memory_bytes(),
        progress=progress,
        **reading.site_options(),
        **reading.data_options(),
    )
    inputs = [inputs_of(model, data, reading) for model in (first, second)]
    answers = compare_answers(first, second, *inputs, progress=progress)
    numbers = None
    if answers is None:
        numbers = compare_numbers(first, second, *inputs, progress=progress)
    difference = model_difference(first, second)
    return two_models_document(
        comparison, answers, names=names, data=data, numbers=numbers, difference=difference
    )


def inputs_of(model: Any, data: str, reading: Reading) -> Any:
    """Return data as the inputs of a model; raise if the model cannot read them."""
    from sonde.data import open_inputs

    options = reading.data_options()
    for name in ("check", "logits", "keep_special", "sinks", "generate"):
        options.pop(name, None)
    return open_inputs(model, data, logits=True, **options)
