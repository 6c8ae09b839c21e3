"""A look inside models: what attention compares and weighs, which heads matter, what each layer would answer.

Nothing of it is on the way of a model that runs: values are taken out by interceptors while `inspect` traces a forward
pass of its own. Beside it are two questions to vectors and models, with commands of their own: `senses`, whether a
word's meanings come apart, and `association`, what was inherited from the texts.
"""

from zoo.inspection.ablation import ablate_heads
from zoo.inspection.capture import Attended, Inspection, inspect
from zoo.inspection.flow import entropy, mean_distance, rollout
from zoo.inspection.lens import Lens, layer_logits, logit_lens

__all__ = [
    "Attended",
    "Inspection",
    "Lens",
    "ablate_heads",
    "entropy",
    "inspect",
    "layer_logits",
    "logit_lens",
    "mean_distance",
    "rollout",
]
