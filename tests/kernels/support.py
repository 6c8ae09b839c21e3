"""docs/attention-support.md: what each backend takes, from the cases that the tests run and from `supports`.

python tests/kernels/support.py        writes it anew
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import mosaic
from zoo.kernels.attention import BACKENDS, prepare
from zoo.kernels.cases import CASES, SMALL_CASES, Sizes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attention-support.md"
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
HOPPER = 9
"""The GPU generation whose limits the table shows."""

SEQUENCES = ("dense", "blockwise", "cudnn", "mosaic", "triton", "splash", "mosaic_tpu")
STEPS = ("decode", "split_k", "dense", "blockwise", "cudnn", "mosaic", "triton", "mosaic_tpu")

FEATURES = {
    "full": "no mask",
    "causal": "`Causal()`",
    "window": "`Window(left, 0)`",
    "symmetric_window": "`Window(left, right)`",
    "chunked": "`Causal() & Chunked(n)`",
    "prefix": "`PrefixLM(lengths)`",
    "padding": "`Lengths(kv=lengths)`",
    "packed": "`Causal() & Segments(ids)`",
    "packed_full": "`Segments(ids)`",
    "alibi": "`ALiBi`, causal",
    "relative": "`RelativeBias` (T5 encoder)",
    "relative_causal": "`RelativeBias`, causal (T5 decoder)",
    "softcap": "soft cap",
    "sinks": "sinks, window",
    "dropout": "dropout",
    "prefix_or_window": "unions of masks",
    "lengths": "`Lengths(q, kv)`",
    "dense_mask": "`Dense(array)`, united with a window",
    "key_mask": "`Dense` over keys, causal",
    "causal_dense_bias": "`DenseBias`, causal",
    "dense_bias": "`DenseBias`, soft cap",
    "key_bias": "`DenseBias` over keys, causal",
    "offset": "`q_offset`, an integer",
    "offset_array": "`q_offset`, one a sequence",
    "positions": "`kv_positions`",
    "scale": "`scale`",
    "sinks_dropout": "sinks, dropout, ALiBi and soft cap",
}

EVIDENCE = """
| backend | platform | how its cells are proved |
|---|---|---|
| `dense` | any | float64 oracle, forward and gradient, on a CPU (`test_backends.py`) |
| `blockwise` | any | the same, with blocks of 8 x 16 and with its own |
| `decode`, `split_k` | any | the same, one query |
| `triton` | GPU | the same in Pallas's interpreter; lowered to Triton for every case (`test_triton.py`) |
| `splash`, `mosaic_tpu` | TPU | the same in Pallas's interpreter; lowered to Mosaic for every case (`test_tpu.py`) |
| `cudnn` | GPU | against a stand-in with the library's semantics; lowered for CUDA (`test_cudnn.py`) |
| `mosaic` | GPU | against tokamax's own reference where it is installed; lowered for Hopper (`test_mosaic.py`) |

No cell has been run on a GPU or TPU yet. `benchmarks/check.py` does that, case by case.
"""


def refusal(name: str, case: str, dtype, sizes: Sizes) -> str | None:
    """Why a backend does not take a case on its own platform; None when it does."""
    shapes = jax.eval_shape(lambda: sizes.inputs(np.random.default_rng(0), dtype))
    arguments = (CASES | SMALL_CASES)[case](np.random.default_rng(0), sizes)
    if case in ("causal_dense_bias", "dense_bias", "key_bias"):  # in the dtype of q, as those that take one want it
        arguments["bias"] = jax.tree.map(lambda x: x.astype(dtype), arguments["bias"])
    call, _ = prepare(*shapes, **arguments)
    return mosaic.feature_refusal(call, HOPPER) if name == "mosaic" else BACKENDS[name].supports(call)


def table(names: tuple[str, ...], sizes: Sizes, notes: list[str]) -> str:
    """Markdown; reasons are appended to `notes` and referred to by number."""
    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for case, feature in FEATURES.items():
        if sizes.T != sizes.S and case in ("packed", "packed_full"):
            continue
        cells = []
        for name in names:
            reasons = {label: refusal(name, case, dtype, sizes) for label, dtype in DTYPES.items()}
            taken = [label for label, reason in reasons.items() if reason is None]
            if taken:
                cells.append("yes" if len(taken) == len(DTYPES) else " ".join(taken))
                continue
            reason = reasons["bf16"]
            if reason not in notes:
                notes.append(reason)
            cells.append(f"– ({notes.index(reason) + 1})")
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    notes: list[str] = []
    sequences = table(SEQUENCES, Sizes(B=2, T=1024, S=1024, N=8, K=4, H=64, V=64), notes)
    steps = table(STEPS, Sizes(B=2, T=1, S=1024, N=8, K=4, H=64, V=64), notes)
    listed = "\n".join(f"{i}. {reason}" for i, reason in enumerate(notes, 1))
    return f"""# What each attention backend takes

Made by `python tests/kernels/support.py` from the cases that the tests and the benchmark share; a test fails when it is
out of date. "yes" is float32, bfloat16 and float16, forward and gradient. A number says why not, below.
`zoo.kernels.explain(q, k, v, mask=…)` says the same of one call on the machine at hand.

## Sequences: T = S = 1024, 8 query and 4 key heads of 64

{sequences}

## Steps of decoding: T = 1, S = 1024

{steps}

## Why not

{listed}

## Evidence
{EVIDENCE}"""


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
