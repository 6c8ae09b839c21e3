"""What a run says at its end: held-out figures beside baselines on the same text, a sample, and what to run next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zoo.data import Tokenizer, ngram_bits_per_byte, unigram_cross_entropy, xz_bits_per_byte
from zoo.generate import GREEDY, Sampling
from zoo.recipes.run import Prepared, Run
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.tasks.masked_lm import MaskedLMConfig

SAMPLE = Sampling(temperature=0.7, top_p=0.95)
"""How samples are drawn where none is asked for."""

_CODE = 'class Shelf:\n    """A shelf of books."""\n\n    def __init__(self'
_MASKED = "import os\n\ndef read(path):\n    <mask> open(path) as file:\n        return file.read<mask>\n"


def show_results(
    console: Console, run: Run, prepared: Prepared, results: dict[str, float], with_baselines: bool
) -> None:
    """Print held-out results as a table, the baselines under them where asked for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("held out")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for name, value, note in _rows(run, results):
        table.add_row(name, value, note)
    if with_baselines:
        with console.status("measuring the baselines on the same text"):
            for name, value, note in _baselines(run, prepared):
                table.add_row(name, value, note, style="cyan")
    console.print(Padding(table, (1, 0)))


def show_sample(console: Console, run: Run, prepared: Prepared, apply: Callable[..., Any], params: Any) -> None:
    """Print what the model makes of a prompt of the recipe's kind."""
    task, dataset = prepared.task, prepared.dataset
    options: dict[str, Any] = dict(max_new_tokens=200, sampling=SAMPLE, seed=0)
    if isinstance(run.task, CausalLMConfig):
        prompts = [_CODE]
    elif isinstance(run.task, MaskedLMConfig):
        prompts, options["sampling"] = [_MASKED], GREEDY
    else:
        source = dataset.split("validation")
        places = np.linspace(0, len(source) - 1, 6).astype(int)
        prompts = [source[int(i)][run.data.source_key] for i in places]
        options |= {"sampling": GREEDY, "max_new_tokens": run.task.target_length}
    console.print("[bold]sample[/]", f"[dim](temperature {options['sampling'].temperature:g})[/]")
    for prompt in prompts:
        answer = task.respond(apply, params, prompt, **options)
        console.print(Padding(_highlighted(prompt, answer), (0, 2)))
    console.print()


def show_next(console: Console, run: Run) -> None:
    """Print where the run lies and the commands that use it."""
    folder = run.folder
    checkpoints = Path(folder) / "checkpoints"
    if isinstance(run.task, MaskedLMConfig):
        prompt = '"import <mask>"'
    else:
        prompt = '"def "' if isinstance(run.task, CausalLMConfig) else '"21 November 2026"'
    console.print(f"[bold]checkpoint[/]  {checkpoints}   [bold]card[/]  {Path(folder) / 'README.md'}   "
                  f"[bold]curve[/]  {Path(folder) / 'loss.png'}", soft_wrap=True)  # fmt: skip
    console.print(f"[bold]next[/]        python evaluate.py {folder} --prompt {prompt}", soft_wrap=True, markup=True)


def _rows(run: Run, results: dict[str, float]):
    count = f"{results['tokens']:,.0f} tokens scored"
    yield (
        "loss",
        f"{results['loss']:.4f}",
        f"nats per {'hidden ' if isinstance(run.task, MaskedLMConfig) else ''}token, {count}",
    )
    yield "perplexity", f"{results['perplexity']:.2f}", "per token"
    yield "accuracy", f"{100 * results['accuracy']:.1f} %", "likeliest token is the right one"
    if "bits_per_byte" in results:
        yield "bits per byte", f"{results['bits_per_byte']:.4f}", f"on {results['bytes']:,.0f} bytes of text"
    if "exact_match" in results:
        yield (
            "exact match",
            f"{100 * results['exact_match']:.2f} %",
            f"of {results['pairs']:,.0f} pairs, greedy decoding",
        )


def _baselines(run: Run, prepared: Prepared):
    train, heldout = (prepared.dataset.split(split) for split in ("train", "validation"))
    if isinstance(run.task, CausalLMConfig):
        texts = [[example[run.data.text_key] for example in _all(source)] for source in (train, heldout)]
        yield (
            "5-gram",
            f"{ngram_bits_per_byte(*texts):.4f}",
            "bits per byte: interpolated Kneser-Ney, same training split",
        )
        yield (
            "xz -9",
            f"{xz_bits_per_byte(texts[1]):.4f}",
            "bits per byte: of the held-out text alone, for scale",
        )
    elif isinstance(run.task, MaskedLMConfig):
        ids = [_ids(source, prepared.tokenizer, run.data.text_key) for source in (train, heldout)]
        nats = unigram_cross_entropy(*ids, prepared.tokenizer.vocab_size)
        yield "unigram", f"{nats:.4f}", "nats per token: the training split's token frequencies"


def _all(source):
    return (source[index] for index in range(len(source)))


def _ids(source, tokenizer: Tokenizer, text_key: str) -> np.ndarray:
    return np.concatenate([tokenizer.encode(example[text_key]) for example in _all(source)])


def _highlighted(prompt: str, answer: str) -> Text:
    if answer.startswith(prompt):
        return Text(prompt, style="dim") + Text(answer[len(prompt) :])
    if "\n" in prompt:
        return Text(answer)
    return Text(f"{prompt}  ->  ", style="dim") + Text(answer)
