"""How well drawn pictures fit their captions, and how like real ones they are, by a judge that reads both."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from zoo.data import Dataset, read_texts
from zoo.data.pictures import square
from zoo.data.sources import read_field
from zoo.tasks.pair_baselines import nearest_texts
from zoo.tasks.picture_attributes import Judge
from zoo.tasks.report import Figure


def frechet_distance(first: Float[np.ndarray, "n D"], second: Float[np.ndarray, "m D"]) -> float:
    """Between normal distributions of the same means and covariances (Dowson and Landau 1982), as FID has it.

    |m - n|² + tr(S + R - 2 (S R)^½), where the root's trace is that of the eigenvalues' roots.
    """
    (mean, spread), (other_mean, other_spread) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (first, second))
    values, vectors = np.linalg.eigh(spread)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ other_spread @ root)
    trace = np.trace(spread) + np.trace(other_spread) - 2 * np.sqrt(np.maximum(shared, 0)).sum()
    return float(np.square(mean - other_mean).sum() + trace)


@dataclass(frozen=True, eq=False)
class PictureScores:
    """A judge's scores on a dataset's held-out captions, part by part."""

    judge: Judge
    dataset: Dataset
    caption_key: str
    count: int
    """Captions of each part."""

    @functools.cached_property
    def parts(self) -> dict[str, list[Any]]:
        """Held-out examples: those whose captions are drawn, part by part, and as many others under "rest"."""
        source, key = self.dataset.split("validation"), self.judge.task.config.part_key
        names = ("held out",) if key is None else self.dataset.classes(key)
        found: dict[str, list[Any]] = {name: [] for name in (*names, "rest")}
        for index in range(len(source)):
            example = source[index]
            name = names[0 if key is None else example[key]]
            found[name if len(found[name]) < self.count else "rest"].append(example)
        return found

    @functools.cached_property
    def asked(self) -> list[Any]:
        """The examples whose captions are drawn."""
        return [example for name, examples in self.parts.items() if name != "rest" for example in examples]

    @functools.cached_property
    def captions(self) -> list[str]:
        """What is drawn."""
        return [read_field(example, self.caption_key) for example in self.asked]

    def measure(
        self, drawn: np.ndarray, redraw: Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Scores of pictures drawn for `captions`, of the real ones, and of these after their tokens (`redraw`).

        Returns:
            By part, the percentage of pictures in which all is as the caption says; and Fréchet distances to real
            pictures of other held-out captions.
        """
        own, kept = redraw(self.asked)
        results, features = {}, {}
        for name, pictures in (("drawn", drawn), ("real", own), ("real_as_tokens", kept)):
            reading = self.judge.read(pictures)
            features[name] = reading.features
            results |= {f"{name}_{part}": value for part, value in self._by_part(self._right(reading.labels))}
        if self.parts["rest"]:
            others = self.judge.read(redraw(self.parts["rest"])[0]).features
            for name in ("drawn", "real"):
                results[f"{name}_distance"] = frechet_distance(features[name], others)
        return results

    def figures(self, results: Mapping[str, float], how: str) -> Iterator[Figure]:
        """The lines of what `measure` gave."""
        said = {
            "drawn": f"drawn pictures with all that the caption says, by the judge; {how}",
            "real": "of the real pictures, by the same judge: its ceiling",
            "real_as_tokens": "of the real pictures after their tokens",
        }
        for name, note in said.items():
            for part in self.parts:
                if f"{name}_{part}" in results:
                    label = f"{name.replace('_', ' ')}, {part.replace('_', ' ')}"
                    yield Figure(name=label, value=f"{results[f'{name}_{part}']:.2f} %", note=note)
        if "drawn_distance" in results:
            note = f"of the judge's features; real pictures have {results['real_distance']:.2f} among themselves"
            yield Figure(name="Fréchet distance", value=f"{results['drawn_distance']:.2f}", note=note)

    def retrieve(self, image_key: str, size: int) -> Iterator[Figure]:
        """The lines of a baseline: for each caption the training picture whose caption is most like it."""
        train = self.dataset.split("train")
        nearest = nearest_texts(self.captions, read_texts(train, self.caption_key))
        pictures = np.stack([square(train[int(index)][image_key], size) for index in nearest])
        right = self._right(self.judge.read(pictures).labels)
        for part, value in self._by_part(right):
            note = "the training picture with the nearest caption, by TF-IDF of letters"
            yield Figure(name=f"retrieved, {part.replace('_', ' ')}", value=f"{value:.2f} %", note=note)

    def describe(self, pictures: np.ndarray) -> list[str]:
        """What the judge reads in each picture."""
        return self.judge.describe(pictures)

    def _right(self, labels: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Whether a judge's reading of each caption's picture is what the caption says."""
        wanted = np.stack([self.judge.task.labels(example) for example in self.asked])
        return (labels == wanted).all(1)

    def _by_part(self, right: np.ndarray) -> Iterator[tuple[str, float]]:
        start = 0
        for name, examples in self.parts.items():
            if name != "rest" and examples:
                yield name, 100 * float(right[start : start + len(examples)].mean())
                start += len(examples)
