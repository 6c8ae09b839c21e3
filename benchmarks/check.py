"""Check every attention backend on the device at hand against the dense one in float32; exit 1 if one disagrees.

For machines where the test suite does not run (it needs more packages than jax and numpy). Writes check.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.kernels.cases import CASES, Sizes

# Relative to the largest entry of the reference: rounding of inputs, weights and results in each dtype.
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2}


def main() -> None:
    """Compare forward and gradients of every case and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=".")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    options = parser.parse_args()
    folder = Path(options.out)
    rows = [row for case in options.cases for dtype in TOLERANCE for row in compare(case, dtype)]
    failed = [row for row in rows if not row["error"] <= TOLERANCE[row["dtype"]]]
    device = jax.devices()[0]
    (folder / "check.json").write_text(json.dumps({"device": device.device_kind, "results": rows}, indent=1) + "\n")
    for row in failed:
        print(f"WRONG: {row}")
    print(f"{len(rows)} comparisons on {device.device_kind}, {len(failed)} wrong")
    sys.exit(bool(failed))


def compare(case: str, dtype: str):
    """One row a backend: its largest relative error over the output and the three gradients."""
    sizes = Sizes(B=2, T=320, S=320, N=4, K=2, H=64, V=64)
    rng = np.random.default_rng(0)
    inputs = sizes.inputs(rng, jnp.dtype(dtype))
    arguments = CASES[case](rng, sizes)

    def run(backend, q, k, v):
        def loss(q, k, v):
            out = zoo.attention(q, k, v, backend=backend, **arguments).astype(jnp.float32)
            return jnp.square(out).sum(), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    with jax.default_matmul_precision("highest"):
        expected = run("dense", *(x.astype(jnp.float32) for x in inputs))
    for backend in ("auto", "blockwise", "dense"):
        found = run(backend, *inputs)
        error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))
        yield {"case": case, "dtype": dtype, "backend": backend, "error": error}


if __name__ == "__main__":
    main()
