"""zoo_digits: 1,797 handwritten digits, scanned and shrunk to 8 by 8 grey levels, as scikit-learn has them (Alpaydin
and Kaynak 1998): {"image", "label"}.

The split is by a hash of the picture. The set holds no word of who wrote which, so a writer may be on both sides.
"""

import hashlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from zoo.data.builders.embedded import EmbeddedBuilder

HELD_OUT = 0.2


def is_held_out(image: np.ndarray) -> bool:
    """Whether a picture is in the validation split."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "big") < HELD_OUT * 2**32


class ZooDigits(EmbeddedBuilder):
    """Scanned digits: {"image", "label"}."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_1", version=VERSION)]
    FEATURES: ClassVar = {
        "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=list("0123456789")),
    }

    def _generate_examples(self, split):
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Sixteen grey levels, and one more; pictures have 256.
        images = np.minimum(digits.images * 16, 255).astype(np.uint8)[..., None]
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            if is_held_out(image) == (split == "validation"):
                yield index, {"image": image, "label": int(label)}
