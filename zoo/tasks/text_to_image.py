"""A picture of a caption, token by token: a text encoder, and a decoder over a picture's tokens that attends to it.

The tokens are those of a learned tokenizer, as in DALL-E (Ramesh et al. 2021), whose transformer reads captions and
pictures in one stream where this one has cross-attention as Parti has (Yu et al. 2022); or the pixels themselves, each
the nearest colour of a small palette, as in Image GPT (Chen et al. 2020). They are written row by row. Classifier-free
guidance (Ho and Salimans 2022): some captions are left out in training, and sampling leads away from what would be
drawn without one.

What is drawn for held-out captions is read by a judge, a model of its own that never saw it.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import UInt8

from zoo.data import DataConfig, Dataset, TextTokenizer, row_batches
from zoo.data.pictures import as_levels, as_pixels, square
from zoo.data.sources import read_field
from zoo.generate import generate
from zoo.generation_config import GenerationConfig
from zoo.tasks.losses import language_loss, score_split
from zoo.tasks.picture_grid import draw_grid
from zoo.tasks.picture_scores import PictureScores
from zoo.tasks.report import Figure, Question, loss_figures

_TOGETHER = 64
"""Pictures that are drawn at once."""
_SHOWN = 6
VARIANTS = 4


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig:
    """Draw what a caption says."""

    image_size: int = 32
    """Height and width in pixels to which the middle of a picture is brought."""
    caption_length: int = 32
    """Tokens of a caption, S, its begin and end tokens included; a longer one loses its end."""
    batch_size: int = 64
    """Pictures a step over all devices, B."""
    image_tokens: str | None = "runs/image-tokens-tiny"
    """Run folder of the image tokenizer; where there is none, the recipe of its name trains it there first. None: the
    pixels themselves are the tokens."""
    palette_size: int = 32
    """Colours that pixels may have, without an image tokenizer."""
    caption_dropout: float = 0.1
    """Share of the captions that training leaves out, for guidance."""
    guidance_scale: float = 3.0
    """How far pictures are led to their caption: 1 follows the model, more exaggerates what the caption changes."""
    temperature: float = 1.0
    """Divides the logits in sampling."""
    top_p: float = 0.95
    """Tokens are drawn among the likeliest that together have this probability."""
    judge: str | None = "runs/picture-judge-tiny"
    """Run folder of the reader that judges what is drawn, trained first like `image_tokens`; None: nobody does."""
    num_judged: int = 500
    """Captions of each part of the held-out pictures that are drawn to be judged."""

    head: ClassVar[str] = "base"
    """What it takes of a pretrained checkpoint, which becomes the encoder."""

    def __post_init__(self):
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}; give a share from 0 to below 1")
        if self.palette_size < 2:
            raise ValueError(f"palette_size is {self.palette_size}; give at least 2 colours")
        if self.guidance_scale != 1 and not self.caption_dropout:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale} and caption_dropout 0, so that the model never learns what "
                "it is led away from; give caption_dropout=0.1, or guidance_scale=1"
            )
        GenerationConfig(do_sample=True, temperature=self.temperature, top_p=self.top_p)

    @property
    def companions(self) -> dict[str, str]:
        """Run folders that this task needs, by the name under which its own folder keeps a copy."""
        needed = {"image-tokens": self.image_tokens, "judge": self.judge}
        return {name: folder for name, folder in needed.items() if folder is not None}

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return (data.caption_key,)

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs; those of a picture are checked once its tokenizer is known."""
        return {"embedding": self.caption_length, "decoder_embedding": 0}

    def bind(
        self,
        dataset: Dataset,
        tokenizer: TextTokenizer,
        *,
        seed: int,
        data: DataConfig,
        codec: Any,
        judge: Any,
        folder: Path,
    ) -> "TextToImage":
        """The task on a dataset.

        Args:
            dataset: pictures and captions.
            tokenizer: of captions.
            seed: of the order of training.
            data: names the fields.
            codec: turns pixels from -1 to 1 into tokens and back: `encode`, `decode`, `num_codes`, `num_tokens`.
            judge: a `zoo.tasks.picture_attributes.Judge`, or None.
            folder: where pictures go.
        """
        scores = None if judge is None else PictureScores(judge, dataset, data.caption_key, self.num_judged)
        return TextToImage(self, dataset, tokenizer, seed, data.image_key, data.caption_key, codec, scores, folder)


@dataclass(frozen=True, eq=False)
class TextToImage:
    """`TextToImageConfig` on a dataset: a `Task` as training sees it."""

    config: TextToImageConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    image_key: str
    caption_key: str
    codec: Any
    scores: PictureScores | None
    folder: Path

    option: ClassVar[str] = "prompt"
    extras: ClassVar[tuple[str, ...]] = ("output", "variants")

    def batches(self, split: str):
        """Captions and pictures, endless and shuffled, for "train"; otherwise one pass."""
        return row_batches(
            self.dataset.split(split),
            lambda example: {
                **self._read(read_field(example, self.caption_key)),
                "pixels": square(example[self.image_key], self.config.image_size),
            },
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per picture token."""
        ids, mask, weights = batch["input_ids"], batch["attention_mask"], batch["weights"]
        if rng is not None:
            rng, drop_rng = jax.random.split(rng)
            dropped = jax.random.bernoulli(drop_rng, self.config.caption_dropout, (len(ids), 1))
            ids = jnp.where(dropped, self._nothing["input_ids"], ids)
            mask = jnp.where(dropped, self._nothing["attention_mask"], mask)
        targets = lax.stop_gradient(self.codec.encode(as_pixels(batch["pixels"])))
        start = jnp.full_like(targets[:, :1], self.codec.num_codes)
        output = apply(
            params,
            input_ids=ids,
            # Blank rows that fill the last batch attend to something.
            attention_mask=jnp.maximum(mask, (~mask.any(-1, keepdims=True)).astype(mask.dtype)),
            decoder_input_ids=jnp.concatenate([start, targets[:, :-1]], 1),
            dropout_rng=rng,
        )
        loss, metrics = language_loss(apply, params, output, targets, jnp.broadcast_to(weights[:, None], targets.shape))
        return loss + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per picture token), and what the judge makes of pictures drawn for held-out captions."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        results = {
            "loss": scored["loss"],
            "perplexity": math.exp(min(scored["loss"], 700.0)),
            "accuracy": scored["accuracy"],
            "tokens": scored["weight"],
        }
        if self.scores is not None:
            results |= self.scores.measure(self.draw(apply, params, self.scores.captions), self._redraw)
        return results

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss, and the judge's scores."""
        yield from loss_figures(results, "picture token")
        if self.scores is not None:
            yield from self.scores.figures(results, f"guidance {self.config.guidance_scale}")

    def baselines(self) -> Iterator[Figure]:
        """What the judge makes of the training picture with the most similar caption."""
        if self.scores is not None:
            yield from self.scores.retrieve(self.image_key, self.config.image_size)

    @property
    def example(self) -> str:
        """A held-out caption."""
        return read_field(self.dataset.split("validation")[0], self.caption_key)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out captions from all over the split, what the judge reads in a picture of each, and all variants."""
        source = self.dataset.split("validation")
        places = np.linspace(0, len(source) - 1, _SHOWN).astype(int)
        captions = [read_field(source[int(place)], self.caption_key) for place in places]
        drawn = self.draw(apply, params, [caption for caption in captions for _ in range(VARIANTS)])
        rows = list(zip(captions, drawn.reshape(_SHOWN, VARIANTS, *drawn.shape[1:]), strict=True))
        for caption, pictures in rows:
            yield caption, self.scores.describe(pictures[:1])[0] if self.scores is not None else "a picture"
        yield f"{VARIANTS} variants of each", str(draw_grid(rows, self.folder / "samples.png"))

    def respond(self, apply, params, question: Question) -> str:
        """The path of a picture with variants of what the prompt says."""
        if "max_new_tokens" in question.options:
            raise ValueError(f"--max-new-tokens is of no use here: a picture has {self.codec.num_tokens} tokens")
        length = len(self.tokenizer.encode(question.prompt)) + 2
        if length > self.config.caption_length:
            raise ValueError(
                f"the prompt has {length} tokens and this model reads {self.config.caption_length}; shorten it"
            )
        count = question.variants or VARIANTS
        drawn = self.draw(
            apply,
            params,
            [question.prompt] * count,
            seed=question.seed,
            options=question.options,
        )
        words = "-".join(re.findall(r"\w+", question.prompt.lower()))[:60] or "picture"
        path = question.output or self.folder / "pictures" / f"{words}-seed-{question.seed}.png"
        return str(draw_grid([(question.prompt, drawn)], path))

    def draw(
        self,
        apply,
        params,
        captions: Sequence[str],
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> UInt8[np.ndarray, "n 3 size size"]:
        """A picture of each caption; the same captions and seed give the same pictures."""
        chosen = self._options | dict(options or {})
        rows = [self._read(caption) for caption in captions]
        together = min(_TOGETHER, len(rows))
        rows += [self._nothing] * (-len(rows) % together)
        if chosen["guidance_scale"] != 1:
            chosen["negative_prompt_ids"] = self._nothing["input_ids"][None]
            chosen["negative_prompt_attention_mask"] = self._nothing["attention_mask"][None]
        drawn = []
        for start in range(0, len(rows), together):
            generated = generate(
                apply,
                params,
                np.stack([row["input_ids"] for row in rows[start : start + together]]),
                np.stack([row["attention_mask"] for row in rows[start : start + together]]),
                prng_key=jax.random.fold_in(jax.random.key(seed), start),
                decoder_start_token_id=self.codec.num_codes,
                **(chosen | {"max_new_tokens": self.codec.num_tokens}),
            )
            drawn.append(as_levels(self._decode(generated.sequences[:, 1:])))
        return np.concatenate(drawn)[: len(captions)].transpose(0, 3, 1, 2)

    @property
    def _options(self) -> dict[str, Any]:
        """How a picture's tokens are drawn where the question does not say."""
        return {
            "do_sample": True,
            "temperature": self.config.temperature,
            "top_k": None,
            "top_p": self.config.top_p,
            "guidance_scale": self.config.guidance_scale,
        }

    @functools.cached_property
    def _decode(self):
        return jax.jit(self.codec.decode)

    @functools.cached_property
    def _nothing(self) -> dict[str, np.ndarray]:
        """What the encoder reads where no caption is given."""
        return self._read("")

    def _read(self, caption: str) -> dict[str, np.ndarray]:
        row = self.tokenizer.encode_row([caption], self.config.caption_length)
        return {name: row[name] for name in ("input_ids", "attention_mask")}

    def _redraw(self, examples: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Examples' own pictures, and what is left of them after their tokens."""
        own = np.stack([square(example[self.image_key], self.config.image_size) for example in examples])
        through = jax.jit(lambda pixels: self.codec.decode(self.codec.encode(pixels)))
        parts = [as_levels(through(as_pixels(part))) for part in np.split(own, range(64, len(own), 64))]
        return own, np.concatenate(parts).transpose(0, 3, 1, 2)
