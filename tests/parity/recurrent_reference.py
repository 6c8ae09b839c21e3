"""torch's LSTM and GRU with the same weights: what they compute, and their weights under zoo's names.

`python tests/parity/recurrent_reference.py` records it; needs torch.
"""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).parent / "recorded"
CASES = [(cell, direction) for cell in ("lstm", "gru") for direction in ("forward", "both")]
NUM_LAYERS, INPUTS, WIDTH = 2, 3, 4
LENGTHS = (6, 4, 1)
"""Of the rows of a batch."""
GATES = {"lstm": 4, "gru": 3}


def path_of(cell: str, direction: str) -> Path:
    """The file of a case."""
    return RECORDED / f"recurrent-{cell}-{direction}.npz"


def run(cell: str, direction: str, weights: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """What torch computes of a padded batch, its gradients, and the weights, random unless given.

    "x" [B, T, I]; "output" [B, T, M], zero on padding; "hidden" and "cell" [layers * directions, B, D]; "weight/NAME";
    "gradient/NAME".
    """
    import torch

    torch.manual_seed(0)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    module = kind(INPUTS, WIDTH, NUM_LAYERS, batch_first=True, bidirectional=direction == "both")
    if weights is not None:
        module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(len(LENGTHS), max(LENGTHS), INPUTS)).astype(np.float32))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True)
    given, last = module(packed)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(given, batch_first=True)
    torch.sin(3 * output).sum().backward()
    hidden, state = last if cell == "lstm" else (last, None)
    found = {"x": x, "output": output, "hidden": hidden} | ({} if state is None else {"cell": state})
    parameters = dict(module.named_parameters())
    found |= {f"weight/{name}": value for name, value in parameters.items()}
    found |= {f"gradient/{name}": value.grad for name, value in parameters.items()}
    return {name: value.detach().numpy() for name, value in found.items()}


def parameters(cell: str, direction: str, weights: dict[str, np.ndarray]) -> dict:
    """torch's weights as those of a `RecurrentStack`; an LSTM's two biases as their sum."""
    layers: dict = {}
    for depth in range(NUM_LAYERS):
        for side, suffix in {"forward": "", "backward": "_reverse"}.items():
            if side == "backward" and direction != "both":
                continue
            kernels = {name: weights[f"weight_{kind}_l{depth}{suffix}"] for name, kind in _KINDS.items()}
            biases = {name: weights[f"bias_{kind}_l{depth}{suffix}"] for name, kind in _KINDS.items()}
            maps = {
                name: {"kernel": kernel.T.reshape(-1, GATES[cell], WIDTH), "bias": biases[name].reshape(-1, WIDTH)}
                for name, kernel in kernels.items()
            }
            if cell == "lstm":
                maps["input"]["bias"] = maps["input"]["bias"] + maps["recurrent"].pop("bias")
            layers.setdefault(f"layer_{depth}", {})[side] = maps
    return layers


_KINDS = {"input": "ih", "recurrent": "hh"}


def of(prefix: str, recorded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under a prefix."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in recorded.items() if name.startswith(f"{prefix}/")}


if __name__ == "__main__":
    for case in CASES:
        np.savez_compressed(path_of(*case), **run(*case))
        print(path_of(*case).name, path_of(*case).stat().st_size)
