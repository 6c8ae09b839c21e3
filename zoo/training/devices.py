"""What accelerators can do at best, from their vendors' data sheets: MFU is a share of it, and plans count with it.

A row is one JAX device, which is half a chip of a TPU v2 and v3. Rates that vendors give for both directions together
are halved. Hosts differ in what joins them: across hosts a link is what the network gives a device.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp


@dataclass(frozen=True)
class Accelerator:
    """One device's ceilings."""

    tflops: float
    """Dense bfloat16 products, 10^12 operations a second."""
    memory: float
    """GiB, of the smallest kind that has this name."""
    bandwidth: float
    """Of its memory, 10^9 bytes a second."""
    link: float
    """To its neighbours, 10^9 bytes a second that one device sends."""


# By the beginning of JAX's device_kind; the longest match counts.
ACCELERATORS = {
    "TPU v2": Accelerator(22.5, 8, 350, 62),
    "TPU v3": Accelerator(61.5, 16, 450, 82),
    "TPU v4": Accelerator(275, 32, 1228, 300),
    "TPU v5 lite": Accelerator(197, 16, 819, 200),
    "TPU v5e": Accelerator(197, 16, 819, 200),
    "TPU v5": Accelerator(459, 95, 2765, 600),
    "TPU v5p": Accelerator(459, 95, 2765, 600),
    "TPU v6 lite": Accelerator(918, 32, 1640, 400),
    "TPU v6e": Accelerator(918, 32, 1640, 400),
    "NVIDIA T4": Accelerator(65, 16, 320, 16),
    "Tesla T4": Accelerator(65, 16, 320, 16),
    "Tesla V100": Accelerator(125, 16, 900, 150),
    "NVIDIA A10": Accelerator(125, 24, 600, 32),
    "NVIDIA A10G": Accelerator(70, 24, 600, 32),
    "NVIDIA L4": Accelerator(121, 24, 300, 32),
    "NVIDIA L40S": Accelerator(362, 48, 864, 32),
    "NVIDIA A100": Accelerator(312, 40, 1555, 300),
    "NVIDIA A100-SXM4-80GB": Accelerator(312, 80, 2039, 300),
    "NVIDIA H100": Accelerator(989, 80, 3350, 450),
    "NVIDIA H100 PCIe": Accelerator(756, 80, 2000, 64),
    "NVIDIA H200": Accelerator(989, 141, 4800, 450),
    "NVIDIA GH200": Accelerator(989, 96, 4000, 450),
    "NVIDIA B200": Accelerator(2250, 180, 8000, 900),
    "NVIDIA GeForce RTX 3090": Accelerator(71, 24, 936, 32),
    "NVIDIA GeForce RTX 4090": Accelerator(165, 24, 1008, 32),
}


def find_accelerator(name: str) -> Accelerator | None:
    """The row of a device by its name; None if there is none."""
    known = [start for start in ACCELERATORS if name.startswith(start)]
    return ACCELERATORS[max(known, key=len)] if known else None


def peak_products(accelerator: Accelerator, platform: str, compute_dtype: Any) -> float:
    """FLOP/s of one device for a compute dtype: float32 runs as TF32 on GPUs, at half the rate, and in bfloat16 passes
    on TPUs.
    """
    slower = 2 if platform == "gpu" and jnp.dtype(compute_dtype).itemsize == 4 else 1
    return 1e12 * accelerator.tflops / slower
