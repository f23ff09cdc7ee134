import pytest

from sonde_studies._typed_code import TYPES, typed_parameters

SOURCE = '''
def join(parts: list[str], sep: Optional[str] = None, *, limit: int = 3, other: Plan, unused: bool):
    """Text of parts."""
    sep = sep or other.mark
    return sep.join(parts[:limit])
'''


@pytest.mark.truth("a function that was stripped by hand")
def test_types_and_mentions_of_stripped_parameters():
    found = typed_parameters(SOURCE)
    text = "def v0(v1, v2, *, v3, v4, v5):\n    v2 = v2 or v4.v6\n    return v2.join(v1[:v3])"
    text = text.replace("join", "v0")  # a function's own name is a name too
    assert {p.text for p in found} == {text}
    said = {p.name: (TYPES[p.type], [text[at - 1 : at + 1] for at in p.places]) for p in found}
    mentions = {"parts": ("list", ["v1"]), "sep": ("str", ["v2"] * 3), "limit": ("int", ["v3"])}
    assert said == mentions  # "other" has another type, "unused" no mention
