"""Work on one device of each process: what answers in arrays that a process reads, such as what a model writes.

Of several processes none can read an array whose parts lie with others. So each works by itself, on a copy of the
parameters, and all get the same. The model has to fit on a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from zoo.training.config import MeshConfig
from zoo.training.sharding import make_mesh


@contextmanager
def one_device(params: Any, needed: bool = False) -> Iterator[Any]:
    """Give parameters to work on in the block: a copy on this process's first device, which is then the only one.

    One process gives them as they are unless a copy is `needed`: what is computed on one has the same bits however many
    others there are.
    """
    if not needed and jax.process_count() == 1:
        yield params
        return
    sharding = jax.tree.leaves(params)[0].sharding
    whole = jax.device_put(params, NamedSharding(sharding.mesh, PartitionSpec()))
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.local_devices()[:1])):
        yield jax.tree.map(lambda x: x.addressable_data(0), whole)
