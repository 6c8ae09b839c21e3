"""LSTM and GRU layers against torch's with the same weights: recorded, and live where torch is installed."""

import jax
import numpy as np
import pytest
from recurrent_reference import CASES, INPUTS, LENGTHS, NUM_LAYERS, WIDTH, of, parameters, path_of, run

from zoo.recurrence import RecurrentStack

MASK = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)


def compare(cell, direction, theirs):
    """Outputs, last states and gradients, to 1e-5."""
    stack = RecurrentStack(cell, NUM_LAYERS, INPUTS, WIDTH, direction)
    params = parameters(cell, direction, of("weight", theirs))

    def score(params):
        outputs, states = stack.apply({"params": params}, theirs["x"], MASK)
        return jax.numpy.sin(3 * outputs[-1]).sum(), (outputs[-1], states)

    with jax.default_matmul_precision("highest"):
        gradients, (output, states) = jax.jit(jax.grad(score, has_aux=True))(params)
    np.testing.assert_allclose(output, theirs["output"], atol=1e-5)
    states = [state for layer in states for state in layer]
    np.testing.assert_allclose([state.hidden for state in states], theirs["hidden"], atol=1e-5)
    if cell == "lstm":
        np.testing.assert_allclose([state.cell for state in states], theirs["cell"], atol=1e-5)
    expected = parameters(cell, direction, of("gradient", theirs))
    if cell == "lstm":  # the sum's gradient is that of each of the two biases, not their sum
        expected = jax.tree_util.tree_map_with_path(lambda path, g: g / 2 if path[-1].key == "bias" else g, expected)
    jax.tree.map(lambda ours, torchs: np.testing.assert_allclose(ours, torchs, atol=1e-5), gradients, expected)


@pytest.mark.parametrize(("cell", "direction"), CASES)
def test_layers_equal_what_torch_computed(cell, direction):
    with np.load(path_of(cell, direction)) as file:
        compare(cell, direction, dict(file))


@pytest.mark.peers
@pytest.mark.parametrize(("cell", "direction"), CASES)
def test_layers_equal_torch_live(cell, direction):
    pytest.importorskip("torch")
    theirs = run(cell, direction)
    compare(cell, direction, theirs)
    with np.load(path_of(cell, direction)) as file:  # and the record is what torch computes from its weights
        recorded = dict(file)
    again = run(cell, direction, of("weight", recorded))
    for name, value in recorded.items():
        np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)
