import random

from sonde.report._select import FIRST_NOTES, FIRST_OF_THEME, FIRST_PAGE, drawn, runs, select

THEMES = ("run", "units", "depth", "labels", "data", "versus")


def _findings(seed: int):
    chance = random.Random(seed)
    codes = [f"SND{i:03d}" for i in range(1, 31)]
    made = []
    for code in codes:
        cause = chance.choice(codes) if chance.random() < 0.2 else None
        made.append({
            "code": code,
            "level": chance.choice(("error", "warning", "note")),
            "theme": chance.choice(THEMES),
            "effect": chance.random(),
            "because_of": cause,
            "ignored": chance.random() < 0.1,
        })  # fmt: skip
    return made


def test_every_finding_stands_in_exactly_one_place_and_the_first_page_keeps_its_limits() -> None:
    for seed in range(200):
        found = _findings(seed)
        chosen = select(found)
        folded = [f for children in chosen.folded.values() for f in children]
        places = [*chosen.first, *chosen.more, *chosen.ignored, *folded]
        assert sorted(f["code"] for f in places) == sorted(f["code"] for f in found)
        assert len(chosen.first) <= FIRST_PAGE
        assert sum(f["level"] == "note" for f in chosen.first) <= FIRST_NOTES
        for theme in THEMES:
            assert sum(f["theme"] == theme for f in chosen.first) <= FIRST_OF_THEME
        seen = {f["code"] for f in (*chosen.first, *chosen.more)}
        assert set(chosen.folded) <= seen


def test_a_chain_of_causes_folds_under_its_root() -> None:
    base = {"level": "note", "theme": "run", "effect": 0.5, "ignored": False}
    found = [
        {**base, "code": "SND001", "because_of": None},
        {**base, "code": "SND002", "because_of": "SND001"},
        {**base, "code": "SND003", "because_of": "SND002"},
        {**base, "code": "SND004", "because_of": "SND099"},
    ]
    chosen = select(found)
    assert [f["code"] for f in chosen.folded["SND001"]] == ["SND002", "SND003"]
    assert {f["code"] for f in (*chosen.first, *chosen.more)} == {"SND001", "SND004"}


def test_no_more_sites_are_drawn_than_allowed_and_the_ends_stay() -> None:
    sites = [f"layers.{i}:out" for i in range(997)]
    kept = drawn(sites, 100)
    assert len(kept) == len(set(kept)) == 100
    assert (kept[0], kept[-1]) == (sites[0], sites[-1])
    assert kept == sorted(kept, key=sites.index)


def test_runs_name_only_neighbours() -> None:
    sites = list("abcdefg")
    assert runs(["a", "b", "d", "e", "f", "x"], sites) == ["a", "b", "d … f", "x"]
