"""Pictures as tokens, and back: what an autoencoder loses, and how many of its codes it uses."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.data import DataConfig, Dataset, TextTokenizer, row_batches
from zoo.data.clusters import assign, fit_clusters
from zoo.data.pictures import as_levels, as_pixels, open_picture, square
from zoo.tasks.losses import score_split
from zoo.tasks.report import Figure, Question

_FITTED = 30_000
"""Patches that k-means learns from."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class ImageTokensConfig:
    """Write pictures as tokens, from which they can be drawn again."""

    image_size: int = 32
    """Height and width in pixels to which the middle of a picture is brought; the model's own."""
    batch_size: int = 64
    """Pictures a step over all devices, B."""
    baseline_codes: int = 1000
    """Patches of 4 by 4 pixels that k-means may write a picture with, as a baseline."""

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """It reads no text."""
        del data
        return ()

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer | None, *, seed: int, data: DataConfig) -> "ImageTokens":
        """The task on a dataset."""
        del tokenizer
        return ImageTokens(self, dataset, seed, data.image_key)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """`ImageTokensConfig` on a dataset: a `Task` as training sees it."""

    config: ImageTokensConfig
    dataset: Dataset
    seed: int
    image_key: str

    unit: ClassVar[str] = "pictures"
    option: ClassVar[str] = "image"
    example: ClassVar[str] = "picture.png"

    def batches(self, split: str):
        """Pictures, endless and shuffled, for "train"; otherwise one pass."""
        return row_batches(
            self.dataset.split(split),
            lambda example: {"pixels": square(example[self.image_key], self.config.image_size)},
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean squared error of values from -1 to 1."""
        del rng  # nothing is drawn
        pixels, weights = as_pixels(batch["pixels"]), batch["weights"]
        output = apply(params, pixel_values=pixels)
        error = jnp.square(output.pixel_values - pixels).mean((1, 2, 3))
        weight = weights.sum()
        count = jnp.maximum(weight, 1.0)
        psnr = _decibels(jnp.square(jnp.clip(output.pixel_values, -1, 1) - pixels).mean((1, 2, 3)))
        return (error * weights).sum() / count, {"weight": weight, "psnr": (psnr * weights).sum() / count}

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out error and PSNR (decibels), and how many codes stand for how much of the pictures."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        encode = jax.jit(lambda params, pixels: apply(params, pixel_values=pixels).token_ids)
        written = []
        for batch in self.batches("validation"):
            ids = np.asarray(encode(params, as_pixels(batch["pixels"])))
            written.append(ids[batch["weights"] > 0])
        share = np.unique_counts(np.concatenate(written)).counts / sum(ids.size for ids in written)
        return {
            "loss": scored["loss"],
            "psnr": scored["psnr"],
            "codes": float(len(share)),
            "code_perplexity": math.exp(-(share * np.log(share)).sum()),
            "tokens_each": float(written[0].shape[1]),
            "pictures": scored["weight"],
        }

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Error, and use of the codes."""
        note = f"of {results['pictures']:,.0f} pictures, {results['tokens_each']:.0f} tokens each"
        yield Figure(name="PSNR", value=f"{results['psnr']:.2f} dB", note=f"mean {note}; higher is nearer")
        yield Figure(name="squared error", value=f"{results['loss']:.5f}", note="of values from -1 to 1")
        note = f"used for held-out pictures; perplexity {results['code_perplexity']:.1f}"
        yield Figure(name="codes", value=f"{results['codes']:.0f}", note=note)

    def baselines(self) -> Iterator[Figure]:
        """What thumbnails, and the nearest of as many patches as there may be codes, keep of the same pictures."""
        train, asked = self._pictures("train"), self._pictures("validation")
        mean = np.full_like(asked, train.mean((0, 2, 3))[None, :, None, None])
        yield Figure(name="mean colour", value=f"{_psnr(mean, asked):.2f} dB", note="PSNR, no bits")
        for side in (self.config.image_size // 8, self.config.image_size // 4):
            shrunk = np.stack([_through_thumbnail(picture, side) for picture in asked])
            note = f"PSNR of thumbnails of {side} by {side} pixels, {24 * side**2} bits"
            yield Figure(name="thumbnail", value=f"{_psnr(shrunk, asked):.2f} dB", note=note)
        known, patches = _patches(train), _patches(asked)
        rng = np.random.default_rng(self.seed)
        count = self.config.baseline_codes
        centres = fit_clusters(known[rng.permutation(len(known))[:_FITTED]], count, rounds=8)
        error = assign(patches, centres)[1].reshape(len(asked), -1).mean(1) / patches.shape[1]
        bits = math.log2(count) * len(patches) / len(asked)
        note = f"PSNR of the nearest of {count:,} patches of 4 by 4 pixels, {bits:.0f} bits"
        yield Figure(name="k-means", value=f"{np.mean(_decibels(np.maximum(error, 0))):.2f} dB", note=note)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out pictures by number, and the tokens that the model writes for them."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            yield f"held-out picture {place}", self._describe(apply, params, source[int(place)][self.image_key])

    def respond(self, apply, params, question: Question) -> str:
        """A picture's tokens, and what they lose."""
        return self._describe(apply, params, open_picture(question.image))

    def _describe(self, apply, params, picture: Any) -> str:
        pixels = as_pixels(square(picture, self.config.image_size)[None])
        output = apply(params, pixel_values=jnp.asarray(pixels))
        kept = float(_decibels(np.square(np.clip(output.pixel_values, -1, 1) - pixels).mean()))
        return f"{' '.join(map(str, np.asarray(output.token_ids)[0]))} ({kept:.1f} dB)"

    def _pictures(self, split: str) -> np.ndarray:
        """Up to 2,000 pictures of a split, [n, 3, size, size] from -1 to 1."""
        source = self.dataset.split(split)
        chosen = [source[index][self.image_key] for index in range(min(len(source), 2000))]
        return as_pixels(np.stack([square(picture, self.config.image_size) for picture in chosen]))


def _decibels(error: Any) -> Any:
    """Peak signal-to-noise ratio of a mean squared error; the peak is 2, from -1 to 1. At most 100."""
    return -10 * jnp.log10(jnp.maximum(error / 4, 1e-10))


def _psnr(pictures: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean(_decibels(np.square(pictures - wanted).mean((1, 2, 3)))))


def _through_thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture shrunk and stretched again."""
    picture = Image.fromarray(as_levels(pixels[None])[0])
    small = picture.resize((side, side), resample=Image.Resampling.BOX)
    stretched = small.resize(picture.size, resample=Image.Resampling.BICUBIC)
    return as_pixels(np.asarray(stretched).transpose(2, 0, 1))


def _patches(pixels: np.ndarray, size: int = 4) -> np.ndarray:
    """All patches of pictures, a row each."""
    batch, _, height, width = pixels.shape
    cut = pixels.reshape(batch, 3, height // size, size, width // size, size)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 3 * size * size)
