"""Recipes: one function a run. `RECIPES` maps the names on the command line to them; the first is the default."""

from zoo.recipes.questions import answer_tiny
from zoo.recipes.run import Recipe
from zoo.recipes.tiny import (
    bert_tiny,
    gpt_tiny,
    search_tiny,
    summarize_tiny,
    translate_dates,
    translate_tiny,
    vit_tiny,
)

RECIPES: dict[str, Recipe] = {
    "gpt-tiny": gpt_tiny,
    "bert-tiny": bert_tiny,
    "translate-dates": translate_dates,
    "translate-tiny": translate_tiny,
    "summarize-tiny": summarize_tiny,
    "search-tiny": search_tiny,
    "vit-tiny": vit_tiny,
    "answer-tiny": answer_tiny,
}
DEFAULT = next(iter(RECIPES))
