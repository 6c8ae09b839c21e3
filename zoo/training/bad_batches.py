"""The batches whose updates were skipped, kept for study in a run's folder with a note on how to look at them."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.training.run_record import write_bytes, write_text

FOLDER = "bad-batches"
README = """# Batches whose updates were skipped

Each file holds the arrays of one step's batch as the loss saw them, with the step, the seed, the loss and the norm
of the gradients; on several machines each machine writes its own rows.

```python
import jax, numpy as np

batch = dict(np.load("step-000123.npz"))
step, seed = batch.pop("step"), batch.pop("seed")
rng = jax.random.fold_in(jax.random.key(seed), step - 1)  # that step's, for dropout
print({name: (x.shape, x.dtype) for name, x in batch.items()})
```
"""


def save_batch(folder: Path, step: int, seed: int, batch: Any, values: dict[str, Any]) -> Path:
    """Write a step's batch (arrays on the devices) and metrics to the run's folder; return the file."""
    several = jax.process_count() > 1
    name = f"step-{step:06d}" + f"-process-{jax.process_index()}" * several
    path = folder / FOLDER / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    if jax.process_index() == 0:
        write_text(path.parent / "README.md", README)
    told = {"step": step, "seed": seed, "loss": values["loss"], "grad_norm": values["grad_norm"]}
    content = io.BytesIO()
    np.savez_compressed(content, **{name: _own_rows(x) for name, x in batch.items()}, **told)
    write_bytes(path, content.getvalue())
    return path


def _own_rows(x: jax.Array) -> np.ndarray:
    """Return the array, or on several machines the rows that lie on this one, each once."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
