"""A recipe is one page: what its reader opens."""

import inspect
from pathlib import Path

import pytest
from tools.count_lines import code_lines

from sonde_studies.recipes import RECIPES, recipe_of

PAGE = 88


@pytest.mark.parametrize("word", RECIPES)
def test_a_recipe_is_at_most_a_page_of_code(word):
    path = Path(inspect.getfile(inspect.unwrap(recipe_of(word))))
    assert path.parent.name == "recipes"
    assert code_lines(path.read_text("utf-8")) <= PAGE
