"""The language model inside a multimodal checkpoint (Gemma 3, LLaVA): its tensors alone, by its own names."""

from collections.abc import Mapping

import numpy as np

from zoo.weights import CheckpointError, Shape, Tensors

_PREFIXES = {"language_model.": "", "model.language_model.": "model."}
"""What stands before its names: in most files, and in those that transformers 5 wrote."""


class LanguagePart:
    """`Tensors` of `zoo.weights`; towers and projectors are left out."""

    def __init__(self, whole: Tensors):
        """Raises CheckpointError where no tensor is the language model's."""
        self.origin, self._whole = whole.origin, whole
        self._names = {"lm_head.weight": "lm_head.weight"} if "lm_head.weight" in whole.shapes else {}
        for name in whole.shapes:
            for theirs, ours in _PREFIXES.items():
                if name.startswith(theirs):
                    self._names[ours + name.removeprefix(theirs)] = name
        if set(self._names) <= {"lm_head.weight"}:
            raise CheckpointError(f"{self.origin} has no tensor under {' or '.join(_PREFIXES)}; zoo reads such alone")
        self.shapes: Mapping[str, Shape] = {ours: whole.shapes[name] for ours, name in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._whole.read(self._names[name])
