"""Which class a picture shows (ViT, Dosovitskiy et al. 2021): cross-entropy on moved, mirrored and mixed pictures, and
the share of held-out pictures whose class is the likeliest, or among the five likeliest.

Pictures are brought to one size on the host. What makes each epoch's pictures new happens on the device, from the
step's key, so a resumed run sees the same ones.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.data import DataConfig, Dataset, TextTokenizer, class_number, label_batches
from zoo.data.images import ImageProcessor
from zoo.data.pictures import open_picture
from zoo.tasks.losses import score_split
from zoo.tasks.report import Figure, Question

_BASELINE_PICTURES = 20_000
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class ImageClassificationConfig:
    """Tell a picture's class."""

    image_size: int = 224
    """Height and width in pixels to which pictures are brought."""
    channels: Literal[1, 3] = 3
    """Grey, or red, green and blue; pictures of the other kind are converted."""
    shorter_side: int | None = None
    """Bring pictures to this length of the shorter side, and cut out the middle; None: stretch them."""
    resample: int = 2
    """Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from each channel, of values from 0 to 1."""
    std: tuple[float, ...] = (0.5,)
    """Divides each channel then."""
    batch_size: int = 128
    """Pictures a step over all devices, B."""
    zoom: float = 0.0
    """In training each picture is scaled by a factor drawn between 1 - zoom and 1 + zoom."""
    shift: float = 0.0
    """And moved by up to this share of its size, along each side; black comes in."""
    flip: bool = False
    """And half of them are mirrored: for things, not for letters."""
    mixup: float = 0.0
    """Blend pairs of pictures, with a weight drawn from Beta(mixup, mixup) (Zhang et al. 2018); 0 blends none."""
    label_smoothing: float = 0.0
    """Share of the target that all classes get alike (Szegedy et al. 2016)."""

    head: ClassVar[str] = "image_classification"

    def __post_init__(self):
        for name in ("zoom", "shift", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to below 1")
        if self.mixup < 0:
            raise ValueError(f"mixup is {self.mixup}; give 0 for none, or a number above it, such as 0.2")

    def read_like(self, processor: ImageProcessor, num_channels: int) -> "ImageClassificationConfig":
        """The same with pictures made as for a checkpoint. ValueError where they are not square."""
        size = processor.crop or processor.size
        if not isinstance(size, tuple) or size[0] != size[1] or processor.clusters is not None:
            raise ValueError(f"the checkpoint reads pictures of size {size}, or their colours; this task's are square")
        return replace(
            self,
            image_size=size[0],
            channels=num_channels,
            shorter_side=processor.size if isinstance(processor.size, int) else None,
            resample=processor.resample,
            mean=(0.0,) if processor.mean is None else tuple(processor.mean),
            std=(1.0,) if processor.mean is None else tuple(processor.std),
        )

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """It reads no text."""
        del data
        return ()

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs: those of a picture are checked by the model's own configuration."""
        return {"embedding": 0}

    def bind(
        self, dataset: Dataset, tokenizer: TextTokenizer | None, *, seed: int, data: DataConfig
    ) -> "ImageClassification":
        """The task on a dataset. ValueError if its labels have no names."""
        del tokenizer
        return ImageClassification(self, dataset, seed, data.image_key, data.label_key, dataset.classes(data.label_key))


@dataclass(frozen=True, eq=False)
class ImageClassification:
    """`ImageClassificationConfig` on a dataset: a `Task` as training sees it."""

    config: ImageClassificationConfig
    dataset: Dataset
    seed: int
    image_key: str
    label_key: str
    classes: tuple[str, ...]

    unit: ClassVar[str] = "pictures"
    option: ClassVar[str] = "image"

    def batches(self, split: str):
        """Pictures and labels, endless and shuffled, for "train"; otherwise one pass."""
        return label_batches(
            self.dataset.split(split),
            lambda example: {"pixel_values": self.pixels(example)},
            classes=self.classes,
            label_key=self.label_key,
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per picture, against smoothed and mixed targets in training; accuracies count the picture's own."""
        pixels, labels, weights = batch["pixel_values"], batch["labels"], batch["weights"]
        targets = jax.nn.one_hot(labels, len(self.classes))
        dropout_rng = None
        if rng is not None:
            dropout_rng, move_rng, mix_rng = jax.random.split(rng, 3)
            pixels = self._move(pixels, move_rng)
            pixels, targets = self._mix(pixels, targets, mix_rng)
            smoothing = self.config.label_smoothing
            targets = targets * (1 - smoothing) + smoothing / len(self.classes)
        output = apply(params, pixel_values=pixels, dropout_rng=dropout_rng)
        nats = -(targets * jax.nn.log_softmax(output.logits)).sum(-1)
        weight = weights.sum()
        count = jnp.maximum(weight, 1.0)
        own = jnp.take_along_axis(output.logits, labels[:, None], -1)
        rank = (output.logits > own).sum(-1)
        metrics = {
            "weight": weight,
            "accuracy": ((rank < 1).astype(jnp.float32) * weights).sum() / count,
            "top5_accuracy": ((rank < 5).astype(jnp.float32) * weights).sum() / count,
        }
        return (nats * weights).sum() / count + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per picture) and the two accuracies, from 0 to 100."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        return {
            "loss": scored["loss"],
            "accuracy": 100 * scored["accuracy"],
            "top5_accuracy": 100 * scored["top5_accuracy"],
            "pictures": scored["weight"],
        }

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss and accuracies."""
        pictures = f"{results['pictures']:,.0f} pictures of {len(self.classes)} classes"
        yield Figure(name="loss", value=f"{results['loss']:.4f}", note=f"nats per picture; chance has "
                     f"{math.log(len(self.classes)):.4f}")  # fmt: skip
        yield Figure(name="top-1", value=f"{results['accuracy']:.2f} %", note=pictures)
        if len(self.classes) > 5:
            yield Figure(name="top-5", value=f"{results['top5_accuracy']:.2f} %", note="among the five likeliest")

    def baselines(self) -> Iterator[Figure]:
        """What a linear classifier and the three nearest neighbours make of the pixels."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        (x, y), (asked, wanted) = self._arrays("train"), self._arrays("validation")
        for name, model in (
            ("linear", LogisticRegression(max_iter=2000)),
            ("3 nearest", KNeighborsClassifier(n_neighbors=3)),
        ):
            right = 100 * float((model.fit(x, y).predict(asked) == wanted).mean())
            note = f"top-1 on pixels, scikit-learn, {len(x):,} training pictures"
            yield Figure(name=name, value=f"{right:.2f} %", note=note)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out pictures by number and class, and what the model sees."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            example = source[int(place)]
            asked = f"held-out picture {place}, {self.classes[class_number(example[self.label_key], self.classes)]}"
            yield asked, self._name(apply, params, example[self.image_key])

    @property
    def example(self) -> str:
        """A picture's path."""
        return "picture.png"

    def respond(self, apply, params, question: Question) -> str:
        """The likeliest classes of a picture, with their probabilities."""
        return self._name(apply, params, open_picture(question.image))

    def _name(self, apply, params, picture: Any) -> str:
        pixels = self._read(picture)[None]
        likely = np.asarray(jax.nn.softmax(apply(params, pixel_values=pixels).logits[0]))
        best = np.argsort(-likely)[:3]
        return ", ".join(f"{self.classes[index]} ({100 * likely[index]:.1f} %)" for index in best)

    def pixels(self, example: Mapping[str, Any]) -> Float[np.ndarray, "C height width"]:
        """An example's picture, as the model reads it."""
        return self._read(example[self.image_key])

    def _read(self, picture: Any) -> Float[np.ndarray, "C height width"]:
        """A picture of any size, as the model reads it."""
        config = self.config
        square = (config.image_size, config.image_size)
        processor = ImageProcessor(size=config.shorter_side or square, crop=square, resample=config.resample, mean=None)
        pixels = processor(picture)["pixel_values"][0]
        if len(pixels) != config.channels:
            pixels = np.broadcast_to(pixels.mean(0), (config.channels, *square))
        mean, std = self._normalisation
        return (pixels - mean) / std

    @property
    def _normalisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel, [C, 1, 1] or [1, 1, 1]."""
        mean, std = (np.array(values, np.float32) for values in (self.config.mean, self.config.std))
        return mean[:, None, None], std[:, None, None]

    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        source = self.dataset.split(split)
        chosen = range(min(len(source), _BASELINE_PICTURES))
        pixels = [self.pixels(source[index]).ravel() for index in chosen]
        return np.stack(pixels), np.array([source[index][self.label_key] for index in chosen])

    def _move(self, pixels: Float[Array, "B C height width"], rng: Array) -> Float[Array, "B C height width"]:
        """Each picture scaled, moved and mirrored as drawn for it."""
        batch, channels, height, width = pixels.shape
        size = jnp.array([height, width], jnp.float32)
        zoom_rng, shift_rng, flip_rng = jax.random.split(rng, 3)
        if self.config.zoom or self.config.shift:
            zoom = jax.random.uniform(zoom_rng, (batch, 1), minval=-1, maxval=1) * self.config.zoom + 1
            shift = jax.random.uniform(shift_rng, (batch, 2), minval=-1, maxval=1) * self.config.shift * size[None]

            mean, std = self._normalisation
            black = jnp.asarray(-mean / std)

            def place(picture, zoom, shift):
                # About the middle; what comes in from outside is black.
                scale, start = jnp.broadcast_to(zoom, (2,)), shift + (1 - zoom) * size / 2
                return black + jax.image.scale_and_translate(
                    picture - black, (channels, height, width), (1, 2), scale, start, method="linear"
                )

            pixels = jax.vmap(place)(pixels, zoom, shift)
        if self.config.flip:
            mirrored = jax.random.bernoulli(flip_rng, shape=(batch, 1, 1, 1))
            pixels = jnp.where(mirrored, pixels[..., ::-1], pixels)
        return pixels

    def _mix(self, pixels, targets, rng: Array):
        """Pictures blended with one another, and their targets alike."""
        if not self.config.mixup:
            return pixels, targets
        weight_rng, order_rng = jax.random.split(rng)
        weight = jax.random.beta(weight_rng, self.config.mixup, self.config.mixup)
        order = jax.random.permutation(order_rng, len(pixels))
        return tuple(weight * x + (1 - weight) * x[order] for x in (pixels, targets))
