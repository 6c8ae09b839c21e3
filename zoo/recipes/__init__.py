"""Recipes: one function a run. `RECIPES` maps the names on the command line to them; the first is the default."""

from zoo.recipes.classify import classify_tiny, glue
from zoo.recipes.full import (
    answer_squad,
    bert_base,
    gpt2,
    llama_1b,
    search_msmarco,
    summarize_cnn,
    transformer_base,
    vit_cifar10,
    vit_imagenet,
)
from zoo.recipes.lineage import transformer_tiny, translate_dates_attention, translate_dates_lstm
from zoo.recipes.pictures import (
    image_tokens,
    image_tokens_tiny,
    picture_judge_16_tiny,
    picture_judge_tiny,
    text_to_image,
    text_to_image_pixels_tiny,
    text_to_image_tiny,
)
from zoo.recipes.run import Recipe
from zoo.recipes.tiny import (
    answer_tiny,
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
    "translate-dates-attention": translate_dates_attention,
    "translate-dates-lstm": translate_dates_lstm,
    "transformer-tiny": transformer_tiny,
    "translate-tiny": translate_tiny,
    "summarize-tiny": summarize_tiny,
    "search-tiny": search_tiny,
    "vit-tiny": vit_tiny,
    "answer-tiny": answer_tiny,
    "classify-tiny": classify_tiny,
    "text-to-image-tiny": text_to_image_tiny,
    "image-tokens-tiny": image_tokens_tiny,
    "picture-judge-tiny": picture_judge_tiny,
    "text-to-image-pixels-tiny": text_to_image_pixels_tiny,
    "picture-judge-16-tiny": picture_judge_16_tiny,
    "glue": glue,
    "gpt2": gpt2,
    "llama-1b": llama_1b,
    "bert-base": bert_base,
    "transformer-base": transformer_base,
    "summarize-cnn": summarize_cnn,
    "search-msmarco": search_msmarco,
    "answer-squad": answer_squad,
    "vit-cifar10": vit_cifar10,
    "vit-imagenet": vit_imagenet,
    "text-to-image": text_to_image,
    "image-tokens": image_tokens,
}
DEFAULT = next(iter(RECIPES))
