"""Lists that are typed with commas, blanks, or both."""

from sonde.cli.options import Reading


def test_sites_are_a_list_with_commas_or_blanks():
    expected = ["layers.0:out", "layers.2", "head"]
    for typed in (
        ("layers.0:out,layers.2,head",),
        ("layers.0:out,layers.2", "head"),
        tuple(expected),
    ):
        assert Reading(sites=typed).site_options()["sites"] == expected
    assert Reading(sites=("blocks",)).site_options()["sites"] == "blocks"
