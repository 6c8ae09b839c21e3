"""What a picture shows, attribute by attribute: object, colour, style, ... read by one vision transformer.

Each attribute has classes of its own, a share of the model's logits, and a cross-entropy of its own: what was learned
of red and of A serves for a red A that was never seen. A picture counts as read only if all of its attributes are
right. A trained reader judges the pictures that others draw (`Judge`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from zoo.data import DataConfig, Dataset, TextTokenizer, class_number, row_batches
from zoo.data.pictures import as_pixels, open_picture, square
from zoo.tasks.losses import score_split
from zoo.tasks.report import Figure, Question

_JUDGED = 128
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class PictureAttributesConfig:
    """Tell every attribute of a picture."""

    attributes: tuple[str, ...] = (
        "object", "colour", "style", "size", "place", "other_object", "other_colour", "other_style",
    )  # fmt: skip
    """The fields to tell; each holds a class."""
    image_size: int = 32
    """Height and width in pixels to which the middle of a picture is brought."""
    batch_size: int = 64
    """Pictures a step over all devices, B."""
    part_key: str | None = None
    """A field by whose classes held-out accuracy is told apart."""

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """It reads no text."""
        del data
        return ()

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs: those of a picture are checked by the model's own configuration."""
        return {"embedding": 0}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer | None, *, seed: int, data: DataConfig):
        """The task on a dataset. ValueError for an attribute without classes."""
        del tokenizer
        return PictureAttributes(self, dataset, seed, data.image_key, {k: dataset.classes(k) for k in self.attributes})


@dataclass(frozen=True, eq=False)
class PictureAttributes:
    """`PictureAttributesConfig` on a dataset: a `Task` as training sees it."""

    config: PictureAttributesConfig
    dataset: Dataset
    seed: int
    image_key: str
    classes: Mapping[str, tuple[str, ...]]

    unit: ClassVar[str] = "pictures"
    option: ClassVar[str] = "image"
    example: ClassVar[str] = "picture.png"

    def batches(self, split: str):
        """Pictures and attributes, endless and shuffled, for "train"; otherwise one pass."""
        return row_batches(
            self.dataset.split(split),
            lambda example: {"pixels": self.pixels(example), "labels": self.labels(example)},
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def pixels(self, example: Mapping[str, Any]) -> np.ndarray:
        """An example's picture, uint8 [3, size, size]."""
        return square(example[self.image_key], self.config.image_size)

    def labels(self, example: Mapping[str, Any]) -> Int[np.ndarray, " attributes"]:
        """An example's class of each attribute."""
        return np.array([class_number(example[name], names) for name, names in self.classes.items()], np.int32)

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Nats per picture, summed over its attributes."""
        pixels, labels, weights = batch["pixels"], batch["labels"], batch["weights"]
        output = apply(params, pixel_values=as_pixels(pixels), dropout_rng=rng)
        nats, right = jnp.zeros(len(labels)), []
        for column, logits in enumerate(self.split(output.logits)):
            own = labels[:, column, None]
            nats -= jnp.take_along_axis(jax.nn.log_softmax(logits), own, -1)[:, 0]
            right.append(logits.argmax(-1) == own[:, 0])
        weight = weights.sum()
        count = jnp.maximum(weight, 1.0)
        metrics = {"weight": weight, "accuracy": (jnp.stack(right).all(0).astype(jnp.float32) * weights).sum() / count}
        for name, hit in zip(self.classes, right, strict=True):
            metrics[f"{name}_accuracy"] = (hit.astype(jnp.float32) * weights).sum() / count
        return (nats * weights).sum() / count, metrics

    def split(self, logits: Float[jax.Array, "B classes"]) -> list[Float[jax.Array, "B C"]]:
        """Each attribute's share of the logits. ValueError for a model of another number of classes."""
        sizes = [len(names) for names in self.classes.values()]
        if logits.shape[-1] != sum(sizes):
            raise ValueError(
                f"model.head.num_classes is {logits.shape[-1]}; the attributes {', '.join(self.classes)} have "
                f"{sum(sizes)} classes together"
            )
        return jnp.split(logits, np.cumsum(sizes)[:-1], -1)

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per picture), and the share of pictures read wholly right, from 0 to 100."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        results = {name: 100 * value for name, value in scored.items() if name.endswith("accuracy")}
        results |= {"loss": scored["loss"], "pictures": scored["weight"]}
        if self.config.part_key is not None:
            source = self.dataset.split("validation")
            examples = [source[index] for index in range(len(source))]
            read = Judge(self, apply, params).read(np.stack([self.pixels(example) for example in examples])).labels
            right = (read == np.stack([self.labels(example) for example in examples])).all(1)
            parts = np.array([example[self.config.part_key] for example in examples])
            for number, name in enumerate(self.dataset.classes(self.config.part_key)):
                results[f"{name}_accuracy"] = 100 * float(right[parts == number].mean())
        return results

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss and accuracies."""
        yield Figure(name="loss", value=f"{results['loss']:.4f}", note="nats per picture, over all attributes")
        note = f"of {results['pictures']:,.0f} pictures have all {len(self.classes)} attributes right"
        yield Figure(name="all right", value=f"{results['accuracy']:.2f} %", note=note)
        for name, value in results.items():
            if name.endswith("_accuracy"):
                yield Figure(name=name.removesuffix("_accuracy").replace("_", " "), value=f"{value:.2f} %")

    def baselines(self) -> Iterator[Figure]:
        """What a linear reader of the pixels, and the nearest training picture, make of the same pictures."""
        from sklearn.linear_model import RidgeClassifier
        from sklearn.neighbors import KNeighborsClassifier

        (x, y), (asked, wanted) = self._arrays("train"), self._arrays("validation")
        for name, make in (
            ("linear", lambda: RidgeClassifier(alpha=10.0)),
            ("nearest", lambda: KNeighborsClassifier(n_neighbors=1)),
        ):
            read = np.stack([make().fit(x, column).predict(asked) for column in y.T], 1)
            right = 100 * float((read == wanted).all(1).mean())
            note = f"all attributes right, from pixels, scikit-learn, {len(x):,} training pictures"
            yield Figure(name=name, value=f"{right:.2f} %", note=note)

    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        source = self.dataset.split(split)
        examples = [source[index] for index in range(min(len(source), 5000))]
        pixels = as_pixels(np.stack([self.pixels(example) for example in examples]))
        return pixels.reshape(len(pixels), -1), np.stack([self.labels(example) for example in examples])

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out pictures by number, and what the model sees."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            pixels = self.pixels(source[int(place)])
            yield f"held-out picture {place}", Judge(self, apply, params).describe(pixels[None])[0]

    def respond(self, apply, params, question: Question) -> str:
        """What a picture shows."""
        pixels = square(open_picture(question.image), self.config.image_size)
        return Judge(self, apply, params).describe(pixels[None])[0]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a judge makes of N pictures."""

    labels: Int[np.ndarray, "N attributes"]
    features: Float[np.ndarray, "N D"]
    """The vectors that the logits are read from, before the last map."""


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained reader of pictures."""

    task: PictureAttributes
    apply: Any
    params: Any

    def read(self, pixels: np.ndarray) -> Reading:
        """The likeliest class of each attribute of pictures, uint8 [N, 3, size, size]."""
        labels, features = [], []
        for start in range(0, len(pixels), _JUDGED):
            batch = pixels[start : start + _JUDGED]
            padded = np.pad(batch, ((0, _JUDGED - len(batch)), (0, 0), (0, 0), (0, 0)))
            found, vectors = _read(self.task, self.apply, self.params, padded)
            labels.append(np.asarray(found)[: len(batch)])
            features.append(np.asarray(vectors, np.float32)[: len(batch)])
        return Reading(labels=np.concatenate(labels), features=np.concatenate(features))

    def describe(self, pixels: np.ndarray) -> list[str]:
        """The reading of each picture in words."""
        names: Sequence[tuple[str, ...]] = list(self.task.classes.values())
        return [
            ", ".join(classes[label] for classes, label in zip(names, row, strict=True) if classes[label] != "none")
            for row in self.read(pixels).labels
        ]


def _read_batch(task, apply, params, pixels):
    output = apply(params, pixel_values=as_pixels(pixels))
    labels = jnp.stack([logits.argmax(-1) for logits in task.split(output.logits)], 1)
    return labels, output.last_hidden_state[:, 0]


_read = jax.jit(_read_batch, static_argnums=(0, 1))
