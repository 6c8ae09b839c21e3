"""zoo's models as EleutherAI's language-model evaluation harness asks them, for its tasks; needs the extra `lm-eval`.

    from zoo.lm_eval import ZooLM          # also registers the model "zoo"
    import lm_eval
    results = lm_eval.simple_evaluate(ZooLM("runs/gpt-tiny"), tasks=["lambada_openai"])

On the command line, where the harness learns of the name "zoo" from this module:

    python -m zoo.lm_eval --model zoo --model_args checkpoint=runs/gpt-tiny --tasks lambada_openai

Probabilities are those of float32 logits. A text and its continuation are tokenised together, where the vocabulary
lets words run across their seam. Rows are padded to a power of two on the right, which a decoder does not see, so few
shapes are compiled. Left out: chat templates, encoder-decoders, and sampling (generation is greedy, as tasks ask it).
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.bundle import Bundle
from zoo.config import LanguageModelHead
from zoo.pretrained import load
from zoo.recipes.preparation import task_tokenizer
from zoo.training.state import bind_apply

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
except ImportError:
    raise ImportError("zoo.lm_eval needs the evaluation harness: pip install 'zoo[lm-eval]'") from None

Row = tuple[list[int], list[int]]
"""What is given, and what is to be scored after it, as ids; both have at least one."""


@register_model("zoo")
class ZooLM(LM):
    """A decoder behind the harness's three questions."""

    def __init__(
        self,
        checkpoint: str | Path | Bundle,
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_new_tokens: int = 256,
        **others: Any,
    ):
        """Load what is to be evaluated.

        Args:
            checkpoint: a bundle, or whatever `zoo.load` reads.
            batch_size: rows at a time.
            max_length: ids that the model sees at once; None is what its positions allow, else 2048.
            max_new_tokens: written at the most where a task does not say.
            others: what the harness gives to every model, of no use here (device, max_batch_size).

        Raises:
            ValueError: no decoder that writes text, or no tokenizer that zoo reads.
        """
        super().__init__()
        del others
        self.bundle = checkpoint if isinstance(checkpoint, Bundle) else load(checkpoint)
        config = self.bundle.config
        if getattr(config, "family", None) != "decoder-only" or not isinstance(config.head, LanguageModelHead):
            raise ValueError(f"{checkpoint} is no decoder with a language-model head; the harness asks for one")
        positions = config.embedding.positions
        longest = getattr(positions, "max_length", None) or 2048
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        self.max_length = longest if max_length is None else min(max_length, longest)
        self.tokenizer = task_tokenizer(self.bundle)
        self._first = [self.tokenizer.bos_id]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability in nats, and whether it is greedy's."""
        del disable_tqdm
        return self._score([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each text: its log-probability in nats, in windows that score every token once."""
        del disable_tqdm
        totals = []
        for request in requests:
            ids = self.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(ids, self._first[0], self.max_length - 1, 1)
            totals.append(sum(nats for nats, _ in self._score([make_disjoint_window(window) for window in windows])))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, options): what greedy decoding writes, up to the first of `options["until"]`."""
        del disable_tqdm
        return [self._write(*request.args) for request in requests]

    def _write(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 1.0):
            raise ValueError("this task wants sampled text; zoo.lm_eval writes greedily")
        ends = options.get("until") or []
        ends = [ends] if isinstance(ends, str) else ends
        num_new = int(options.get("max_gen_toks", self.max_new_tokens))
        if num_new >= self.max_length:
            raise ValueError(f"the task wants {num_new} tokens and the model sees {self.max_length}; set max_gen_toks")
        ids = self._begun(context)[-(self.max_length - num_new) :]
        # Prompts are padded to few lengths, so that few are compiled.
        width = min(_rounded(len(ids)), self.max_length - num_new)
        prompt, mask = np.zeros((1, width), np.int32), np.zeros((1, width), np.int32)
        prompt[0, width - len(ids) :], mask[0, width - len(ids) :] = ids, 1
        written = self.bundle.generate(prompt, mask, max_new_tokens=num_new, do_sample=False, num_beams=1)
        text = self.tokenizer.decode(np.asarray(written.sequences)[0, width:])
        places = [place for end in ends if end and (place := text.find(end)) >= 0]
        return text[: min(places)] if places else text

    def _begun(self, text: str) -> list[int]:
        """A text as the model reads it from its beginning."""
        return [*self.tokenizer.begin_ids, *self.tokenizer.encode(text)]

    def _pair(self, context: str, continuation: str) -> Row:
        """Ids of both, cut where those of the context end; spaces at the seam belong to the continuation."""
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
        if not self._begun(context):
            return self._first, self.tokenizer.encode(continuation)
        given, whole = self._begun(context), self._begun(context + continuation)
        return given, whole[len(given) :]

    def _score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """The log-probability of each row's second part, and whether each of its ids is the likeliest."""
        kept = [(given, wanted, (given + wanted)[-(self.max_length + 1) :]) for given, wanted in rows]
        order = sorted(range(len(kept)), key=lambda place: -len(kept[place][2]))
        scored: dict[int, tuple[float, bool]] = {}
        for places in _batches(order, self.batch_size):
            width = min(_rounded(len(kept[places[0]][2]) - 1), self.max_length)
            ids = np.zeros((self.batch_size, width + 1), np.int32)
            weights = np.zeros((self.batch_size, width), np.float32)
            for row, place in enumerate(places):
                _, wanted, whole = kept[place]
                ids[row, : len(whole)] = whole
                weights[row, max(0, len(whole) - 1 - len(wanted)) : len(whole) - 1] = 1
            nats, greedy = self._score_batch(self.bundle.params, ids, weights)
            for row, place in enumerate(places):
                scored[place] = float(nats[row]), bool(greedy[row])
        return [scored[place] for place in range(len(rows))]

    @functools.cached_property
    def _score_batch(self) -> Any:
        """From parameters, ids [B, T + 1] and weights [B, T] to each row's sum of nats, and whether it is greedy's."""
        apply = bind_apply(self.bundle.model)

        def score(params, ids, weights):
            logits = apply(params, input_ids=ids[:, :-1]).logits.astype(jnp.float32)
            targets = ids[:, 1:]
            nats = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
            likeliest = (logits.argmax(-1) == targets) | (weights == 0)
            return (nats * weights).sum(-1), likeliest.all(-1)

        return jax.jit(score)


def _rounded(length: int) -> int:
    """The power of two from 16 on that holds so many ids."""
    return max(16, 1 << max(length - 1, 1).bit_length())


def _batches(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def main() -> None:
    """The harness's own command line, with the model "zoo" known to it."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
