"""Three plots of a results file: throughput against length, a roofline, and memory against length.

python benchmarks/plots.py benchmarks/results/attention-<device>.json     draws them anew
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

DECODE = "decode"
AUTO = "auto"
# zoo's backends are filled circles on solid lines, peers open squares on dashed ones; a name has its colour everywhere.
COLOURS = {
    "dense": "#56b4e9",
    "blockwise": "#0072b2",
    "decode": "#009e73",
    "triton": "#6a3d9a",
    "cudnn": "#33a02c",
    "splash": "#17becf",
    "jax-xla": "#e69f00",
    "jax-cudnn": "#d55e00",
    "torch-sdpa": "#555555",
    "torch-sdpa-cudnn": "#b15928",
    "torch-sdpa-flash": "#e7298a",
    "torch-sdpa-efficient": "#999999",
    "torch-flex": "#a6761d",
    "tokamax": "#cc79a7",
}
SPARE = ("#1b9e77", "#7570b3", "#66a61e", "#e6ab02", "#8dd3c7", "#bebada", "#fb8072", "#80b1d3")
MARKERS = {"forward": "o", "forward+backward": "s", DECODE: "^"}
PANEL_WIDTH, PANEL_HEIGHT, MAX_COLUMNS = 4.3, 3.4, 4


def draw(path: Path) -> list[Path]:
    """Draw the plots of a results file beside it; returns their paths."""
    content = json.loads(path.read_text())
    if not content["results"]:
        return []
    figures = {".png": throughput(content), "-roofline.png": roofline(content), "-memory.png": memory(content)}
    written = []
    for suffix, figure in figures.items():
        if figure is not None:
            written.append(path.with_name(path.stem + suffix))
            figure.savefig(written[-1], dpi=110)
    return written


def colour_of(name: str, content: dict) -> str:
    """A colour for a name, the same in all panels and plots."""
    strangers = sorted({row["name"] for row in content["results"]} - set(COLOURS) - {AUTO})
    return COLOURS.get(name) or SPARE[strangers.index(name) % len(SPARE)]


def throughput(content: dict) -> Figure:
    """A panel a problem: TFLOP/s against length, or GB/s in decoding, under the device's ceiling."""
    panels = grouped(content["results"], panel_of)
    figure, places = grid(len(panels), f"Attention on {title(content)}: throughput against length (higher is faster)")
    for axes, (panel, rows) in zip(places, panels.items(), strict=True):
        decode = rows[0]["direction"] == DECODE
        key = "gb_per_second" if decode else "tflops"
        plot_lines(axes, content, rows, lambda row, key=key: row[key])
        ceilings = content["ceilings"]
        memory_rate = max(ceilings["copy_gb_per_second"], ceilings["read_gb_per_second"])
        ceiling = memory_rate if decode else ceilings["matmul_tflops"][rows[0]["dtype"]]
        unit = "GB/s" if decode else "TFLOP/s"
        axes.axhline(ceiling, color="black", linestyle=":", linewidth=1)
        what = "memory" if decode else "matrix product"
        axes.annotate(f"{what}: {ceiling:.3g} {unit}", (0.02, ceiling), xycoords=("axes fraction", "data"),
                      fontsize=7.5, va="bottom")  # fmt: skip
        axes.set(yscale="log", ylabel=f"{unit}" + (" of k and v read" if decode else ""), title=panel)
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, ceiling * 1.8))
        plain_ticks(axes)
    legend(figure, content, content["results"])
    return figure


def memory(content: dict) -> Figure | None:
    """A panel a problem: temporary bytes a sequence against length, between guides of slope 1 and 2."""
    rows = [row for row in content["results"] if row["temp_bytes"] and row["direction"] != DECODE]
    panels = {name: rows for name, rows in grouped(rows, panel_of).items() if len({r["S"] for r in rows}) > 1}
    if not panels:
        return None
    figure, places = grid(len(panels), f"Attention on {title(content)}: temporary memory against length")
    for axes, (panel, rows) in zip(places, panels.items(), strict=True):
        plot_lines(axes, content, rows, lambda row: row["temp_bytes"] / row["B"] / 1e6)
        axes.set(yscale="log", ylabel="MB a sequence, beyond inputs and outputs", title=panel)
        lengths = sorted({row["S"] for row in rows})
        values = [row["temp_bytes"] / row["B"] / 1e6 for row in rows if row["S"] == lengths[0]]
        limits = axes.get_ylim()
        for power, start in ((1, min(values)), (2, max(values))):
            ends = [start * 0.8 ** (3 - 2 * power) * (length / lengths[0]) ** power for length in lengths]
            axes.plot(lengths, ends, color="black", linestyle=":", linewidth=1)
            axes.annotate(f"grows as S{'²' if power == 2 else ''}", (lengths[-1], ends[-1]), (0, 20 * power - 32),
                          textcoords="offset points", fontsize=7.5, ha="right", va="center")  # fmt: skip
            limits = min(limits[0], ends[0] / 1.5), max(limits[1], ends[-1] * 2)
        axes.set_ylim(*limits)
        plain_ticks(axes)
    legend(figure, content, [row for rows in panels.values() for row in rows])
    return figure


def roofline(content: dict) -> Figure:
    """A panel a dtype: TFLOP/s against operations a byte, under both ceilings."""
    panels = grouped(content["results"], lambda row: row["dtype"])
    figure, places = grid(len(panels), f"Attention on {title(content)}: roofline", scale=1.5)
    ceilings = content["ceilings"]
    bytes_rate = max(ceilings["copy_gb_per_second"], ceilings["read_gb_per_second"]) / 1e3  # TB/s
    for axes, (dtype, rows) in zip(places, panels.items(), strict=True):
        product = ceilings["matmul_tflops"][dtype]
        for row in rows:
            if row["name"] != AUTO:
                zoo = row["kind"] == "backend"
                colour = colour_of(row["name"], content)
                axes.plot(row["intensity"], row["tflops"], MARKERS[row["direction"]], color=colour, markersize=6,
                          markerfacecolor=colour if zoo else "none", alpha=0.85)  # fmt: skip
        xs = [row["intensity"] for row in rows]
        ridge = product / bytes_rate
        low, high = min(*xs, ridge) / 3, max(*xs, ridge) * 3
        axes.plot([low, ridge, high], [low * bytes_rate, product, product], color="black", linewidth=1.2)
        axes.annotate(f"matrix product: {product:.3g} TFLOP/s", (high, product), fontsize=8, ha="right", va="bottom")
        axes.annotate(f"memory: {1e3 * bytes_rate:.3g} GB/s", (low, low * bytes_rate), (14, 0),
                      textcoords="offset points", fontsize=8, va="center")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="operations a byte that must move (FLOP/byte)", ylabel="TFLOP/s",
                 title=dtype)  # fmt: skip
        axes.grid(alpha=0.3)
    directions = [Line2D([], [], linestyle="", marker=MARKERS[name], color="black", label=name) for name in MARKERS
                  if any(row["direction"] == name for row in content["results"])]  # fmt: skip
    places[0].legend(handles=directions, fontsize=8, loc="lower right")
    legend(figure, content, [row for row in content["results"] if row["name"] != AUTO], lines=False)
    return figure


def grouped(rows: list[dict], key) -> dict[str, list[dict]]:
    """Rows by a key, in the order in which keys first appear."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def panel_of(row: dict) -> str:
    """The problem but for its length: what one panel shows."""
    heads = f"N={row['N']}" + (f" K={row['K']}" if row["K"] != row["N"] else "")
    batch = f"B={row['B']} " if row["direction"] == DECODE else ""
    return f"{row['case']}, {row['direction']}\n{row['dtype']}, {batch}{heads} H={row['H']}"


def title(content: dict) -> str:
    """Device and dtypes."""
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in content["results"]))
    return f"{content['environment']['device']}, {dtypes}"


def grid(count: int, heading: str, scale: float = 1.0, columns: int = MAX_COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `columns` side by side, and room for a legend below."""
    columns = min(columns, count)
    lines = -(-count // columns)
    size = max(6.5, scale * PANEL_WIDTH * columns), scale * PANEL_HEIGHT * lines + 0.9
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(heading)
    return figure, [figure.add_subplot(lines, columns, place + 1) for place in range(count)]


def plot_lines(axes: Axes, content: dict, rows: list[dict], value) -> None:
    """A line a contender over its lengths; `auto` a wide pale band under the line it runs."""
    for name, own in grouped(rows, lambda row: row["name"]).items():
        points = sorted((row["S"], value(row)) for row in own)
        axes.plot(*zip(*points, strict=True), **style(name, own[0]["kind"], content))
    lengths = sorted({row["S"] for row in rows})
    axes.set(xscale="log", xlabel="length S" if rows[0]["direction"] != DECODE else "keys in the cache S")
    axes.set_xticks(lengths, [str(length) if length < 1024 else f"{length / 1024:g}k" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    axes.grid(alpha=0.3)


def plain_ticks(axes: Axes) -> None:
    """Numbers in place of powers of ten, at 1, 2 and 5 where the axis is short."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def style(name: str, kind: str, content: dict) -> dict:
    """How a contender is drawn."""
    if name == AUTO:
        return {"color": "gold", "linewidth": 7, "alpha": 0.6, "solid_capstyle": "round", "marker": "o",
                "markersize": 10, "markeredgewidth": 0, "zorder": 1}  # fmt: skip
    colour, zoo = colour_of(name, content), kind == "backend"
    return {"color": colour, "linestyle": "-" if zoo else "--", "marker": "o" if zoo else "s", "markersize": 5,
            "markerfacecolor": colour if zoo else "white", "linewidth": 1.6 if zoo else 1.2}  # fmt: skip


def legend(figure: Figure, content: dict, rows: list[dict], lines: bool = True) -> None:
    """One legend for the figure: `auto`, zoo's backends, then peers."""
    kinds = {row["name"]: row["kind"] for row in rows}
    order = sorted(kinds, key=lambda name: (("auto", "backend", "peer").index(kinds[name]), name))
    labels = {"auto": "auto (what zoo.attention chooses)", "backend": "zoo: {}", "peer": "{}"}
    handles = []
    for name in order:
        look = style(name, kinds[name], content) | ({} if lines else {"linestyle": "", "marker": "D"})
        handles.append(Line2D([], [], label=labels[kinds[name]].format(name), **look))
    width = max(2, int(figure.get_figwidth() // 2.6))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), width), fontsize=8.5)


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1])):
        print(f"wrote {drawn}")
