"""The page of a results file of models.py: where it was measured, a plot, and a table a kind of work.

python benchmarks/model_page.py benchmarks/results/models-<device>.json     writes it anew, and draws the plot
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import model_plots
from benchmarks.model_cells import CACHE, DECODE, FORWARD, TRAINING, Cell
from benchmarks.pages import bullets, show, table
from benchmarks.plots import grouped

HEADINGS = {FORWARD: "Forward passes", TRAINING: "Training steps", DECODE: "Decoding", CACHE: "A token, by room"}
"""By kind of work: "room" is that of the cache, for how many keys."""


def write_page(path: Path) -> list[Path]:
    """Write the page of a results file, and draw its plot; returns what was written."""
    content = json.loads(path.read_text())
    drawn = model_plots.draw(path)
    page = path.with_suffix(".md")
    page.write_text("\n\n".join(sections(content, [file.name for file in drawn])) + "\n")
    return [page, *drawn]


def sections(content: dict[str, Any], plots: list[str]) -> Iterator[str]:
    """Return the parts of the page, in Markdown."""
    environment, ceilings = content["environment"], content["ceilings"]
    yield "# Whole models, measured"
    if not content["finished"]:
        yield "**Unfinished: go on with `--resume`.**"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    products = ", ".join(f"{tflops:.3g} in {dtype}" for dtype, tflops in ceilings["matmul_tflops"].items())
    yield (
        f"{model_plots.described(environment)}; Python {environment['python']}, {versions}. Its best in this run: "
        f"TFLOP/s of matrix products: {products}; GB/s of memory: {ceilings['copy_gb_per_second']:.3g} copied, "
        f"{ceilings['read_gb_per_second']:.3g} read.\n\n    {environment['command']}"
    )
    yield from (f"![Time of each contender in each cell]({name})" for name in plots)
    by_work = grouped(content["results"], lambda row: row["work"])
    yield from (f"## {heading}\n\n{_table(by_work[work])}" for work, heading in HEADINGS.items() if work in by_work)
    if content["skipped"]:
        names = [field.name for field in dataclasses.fields(Cell)]
        cells = [Cell(**{name: row[name] for name in names}) for row in content["skipped"]]
        lines = (f"{cell}, {row['name']}: {row['reason']}" for cell, row in zip(cells, content["skipped"], strict=True))
        yield "## What was left out\n\n" + bullets(lines)
    yield "## What the columns say\n\n" + bullets(f"`{name}`: {text}" for name, text in content["formulas"].items())


def _table(rows: list[dict[str, Any]]) -> str:
    """One line a contender in a cell; a cell's name stands in its first."""
    share = "mfu" if rows[0]["mfu"] is not None else "fraction_of_memory"
    head = ["", "", "ratio", "milliseconds (quartiles)", "tokens_per_second", share, "error", "peak_bytes",
            "first_call_seconds (warm)"]  # fmt: skip
    lines = []
    for cell, own in grouped(rows, lambda row: row["cell"]).items():
        for index, row in enumerate(own):
            low, high = row["quartile_milliseconds"]
            warm = row["warm_first_call_seconds"]
            lines.append([
                "" if index else cell.replace(f" {row['work']}", ""),
                row["name"],
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{show(row['milliseconds'])} ({show(low)} to {show(high)})",
                f"{row['tokens_per_second']:,.0f}",
                f"{row[share]:.0%}",
                f"{row['error']:.1e}",
                f"{row['peak_bytes'] / 1e6:,.0f} MB",
                f"{row['first_call_seconds']:.1f}" + ("" if warm is None else f" ({warm:.1f})"),
            ])  # fmt: skip
    return table(head, lines)


if __name__ == "__main__":
    for written in write_page(Path(sys.argv[1])):
        print(f"wrote {written}")
