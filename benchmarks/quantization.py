"""What 8-bit kernels cost in accuracy on a real checkpoint, and what they save.

    python benchmarks/quantization.py MODEL

MODEL is what `zoo.load` takes. A language model reads the English of Python's reference (`pydoc_data.topics`, which
every Python has): perplexity, how often the likeliest next token is the float32 model's, and the mean divergence from
its distribution. A model that embeds texts embeds paragraphs of it: cosines with the float32 model's vectors, and how
often a text's nearest neighbour stays the same. With --decode, milliseconds a token of greedy decoding, the forms timed
in turn.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.bundle import Bundle

FORMS = (None, "int8", "w8a8")


def main() -> None:
    """Measure and print; with --json write as well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=16, help="rows of text, or paragraphs in tens")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--decode", type=int, default=0, metavar="TOKENS", help="time decoding of so many tokens")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    results = measure(options.model, options.rows, options.length)
    for form, numbers in results.items():
        print(f"{form:8}", "  ".join(f"{name} {value:.6g}" for name, value in numbers.items()), flush=True)
    if options.decode:
        for form, numbers in time_decoding(options.model, options.decode).items():
            results[form] |= numbers
            print(f"{form:8}", "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()), flush=True)
    if options.json:
        about = {"model": Path(options.model).name, "rows": options.rows, "length": options.length}
        about |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


def measure(model: str | Path, rows: int, length: int) -> dict[str, dict[str, float]]:
    """Accuracy and bytes by form, "float32" first, which the others are compared with."""
    results, reference = {}, None
    for form in FORMS:
        bundle = zoo.load(model, quantize=form, layers="scanned")
        size = {"megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(bundle.params)) / 1e6}
        if bundle.origin is not None and bundle.origin.head == "embedding":
            vectors = bundle.embed(paragraphs(10 * rows))
            reference = vectors if reference is None else reference
            results[form or "float32"] = size | compare_vectors(vectors, reference)
        else:
            ids = text_rows(bundle, rows, length)
            logits = np.concatenate([np.asarray(bundle(input_ids=row[None]).logits, np.float32) for row in ids])
            reference = logits if reference is None else reference
            results[form or "float32"] = size | compare_logits(logits, reference, ids)
    return results


def paragraphs(count: int) -> list[str]:
    """The first paragraphs of prose of the reference's topics, in the order of their names."""
    found = [part.strip() for _, text in sorted(topics.items()) for part in text.split("\n\n")]
    return [part for part in found if len(part) > 120][:count]


def text_rows(bundle: Bundle, rows: int, length: int) -> np.ndarray:
    """Rows of running text as ids [rows, length]."""
    text = "\n\n".join(paragraphs(rows * length))
    ids = bundle.tokenizer(text[: 8 * rows * length])["input_ids"][0]
    return np.asarray(ids[: rows * length]).reshape(rows, length)


def compare_logits(logits: np.ndarray, reference: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """Perplexity of the rows, agreement with the reference's likeliest token, and divergence from it in nats."""
    ours, theirs = (jax.nn.log_softmax(jnp.asarray(x[:, :-1])) for x in (logits, reference))
    losses = -jnp.take_along_axis(ours, ids[:, 1:, None], -1)
    return {
        "perplexity": float(jnp.exp(losses.mean())),
        "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "divergence": float((jnp.exp(theirs) * (theirs - ours)).sum(-1).mean()),
    }


def compare_vectors(vectors: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Cosines with the reference's vectors, and how many texts keep their nearest neighbour."""
    ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (vectors, reference))
    cosines = (ours * theirs).sum(-1)
    nearest = [(x @ x.T - 2 * np.eye(len(x))).argmax(-1) for x in (ours, theirs)]
    return {
        "mean cosine": float(cosines.mean()),
        "least cosine": float(cosines.min()),
        "same neighbour": float((nearest[0] == nearest[1]).mean()),
    }


def time_decoding(model: str | Path, num_tokens: int, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Milliseconds a token by form, one row after a prompt of 32, the median of rounds in turn, and the ratio."""
    bundles: dict[str, Any] = {form or "float32": zoo.load(model, quantize=form) for form in FORMS}
    prompt = text_rows(bundles["float32"], 1, 32)
    given = dict(max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False)
    samples: dict[str, list[float]] = {form: [] for form in bundles}
    for _ in range(rounds + 1):
        for form, bundle in bundles.items():
            start = time.perf_counter()
            jax.block_until_ready(bundle.generate(prompt, **given).sequences)
            samples[form].append((time.perf_counter() - start) / num_tokens * 1e3)
    medians = {form: statistics.median(times[1:]) for form, times in samples.items()}  # the first compiles
    return {
        form: {"milliseconds a token": found, "of float32": found / medians["float32"]}
        for form, found in medians.items()
    }


if __name__ == "__main__":
    main()
