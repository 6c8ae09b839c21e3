"""The loss in pieces is the loss: values, gradients, what does not count, and how much memory it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import tiered

from zoo.kernels.product import accumulate, output_kernel, product
from zoo.tasks.losses import cross_entropy, vocabulary_loss

BATCH, LENGTH, WIDTH, VOCAB = 4, 14, 8, 37
KEYS = jax.random.split(jax.random.key(0), 4)
STATES = jax.random.normal(KEYS[0], (BATCH, LENGTH, WIDTH))
HEAD = {"kernel": jax.random.normal(KEYS[1], (WIDTH, VOCAB)), "bias": jax.random.normal(KEYS[2], (VOCAB,))}
TARGETS = jax.random.randint(KEYS[3], (BATCH, LENGTH), 0, VOCAB)
WEIGHTS = {
    "all": jnp.ones((BATCH, LENGTH)),
    "some": jnp.asarray(np.random.default_rng(0).integers(0, 2, (BATCH, LENGTH)), jnp.float32),
    "few": jnp.eye(BATCH, LENGTH),
    "unequal": jnp.asarray(np.random.default_rng(0).random((BATCH, LENGTH)), jnp.float32),
    "none": jnp.zeros((BATCH, LENGTH)),
}


def logits_of(head, states):
    """A head with a soft cap, whose gradient is not its input's."""
    return 5 * jnp.tanh((accumulate(states, head["kernel"]) + head["bias"][None, None]) / 5)


def whole(head, states, weights, smoothing=0.0):
    return cross_entropy(logits_of(head, states), TARGETS, weights, smoothing)


def in_pieces(head, states, weights, smoothing=0.0, rows=8):
    return vocabulary_loss(lambda x: logits_of(head, x), states, TARGETS, weights, smoothing, rows=rows)


PIECES = [(weights, rows) for weights in WEIGHTS for rows in (1, 8, 17, 1000)]


@pytest.mark.parametrize(("weights", "rows"), tiered(PIECES, lambda _, rows: rows == 17))
@jax.debug_nans(True)
def test_values_and_gradients_are_those_of_all_logits_at_once(weights, rows):
    weights = WEIGHTS[weights]
    grad = lambda loss: jax.jit(jax.value_and_grad(lambda *x: loss(*x)[0] * 3, (0, 1)))  # noqa: E731
    for smoothing in (0.0, 0.1):
        arguments = HEAD, STATES, weights
        found = grad(lambda *x, s=smoothing: in_pieces(*x, s, rows))(*arguments)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            found,
            grad(lambda *x, s=smoothing: whole(*x, s))(*arguments),
        )
        np.testing.assert_allclose(found[0], 3 * in_pieces(*arguments, smoothing, rows)[0], rtol=1e-6)  # no gradient
    (_, found), (_, expected) = in_pieces(HEAD, STATES, weights), whole(HEAD, STATES, weights)
    assert found["weight"] == expected["weight"]
    np.testing.assert_allclose(found["accuracy"], expected["accuracy"], rtol=1e-6)


def test_states_that_do_not_count_may_be_anything():
    """Their pieces are left out: NaN there reaches neither the loss nor a gradient that counts."""
    weights = WEIGHTS["few"]
    states = jnp.where(weights[..., None] > 0, STATES, jnp.nan)
    loss, gradients = jax.value_and_grad(lambda h, x: in_pieces(h, x, weights, rows=4)[0])(HEAD, states)
    np.testing.assert_allclose(loss, whole(HEAD, STATES, weights)[0], rtol=1e-6)
    assert np.isfinite(gradients["kernel"]).all()


def test_bfloat16_gradients_are_as_near_as_those_of_all_logits():
    exact = jax.grad(lambda h, x: whole(h, x, WEIGHTS["some"])[0], (0, 1))(HEAD, STATES)
    half = STATES.astype(jnp.bfloat16)
    errors = []
    for loss in (whole, in_pieces):
        found = jax.grad(lambda h, x, loss=loss: loss(h, x, WEIGHTS["some"])[0], (0, 1))(HEAD, half)
        assert found[1].dtype == jnp.bfloat16 and found[0]["kernel"].dtype == jnp.float32
        distance = jax.tree.map(lambda x, y: jnp.linalg.norm(x.astype(jnp.float32) - y), found, exact)
        errors.append(float(sum(jax.tree.leaves(distance))))
    assert errors[1] < 1.5 * errors[0]


@pytest.fixture
def optimised():
    """Programs are compiled as users' are, where the suite otherwise compiles quickly."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("rows", [1, 31, 64])
def test_bfloat16_gradients_of_a_tied_table(rows, optimised):
    """XLA on CPUs swaps the operands of a product whose result is transposed, and cannot run what it made."""
    table, states = (jax.random.normal(key, (rows, 64)) for rows, key in zip((500, 2 * rows), KEYS[:2], strict=True))
    targets, weights = jnp.arange(2 * rows).reshape(2, rows) % 500, jnp.ones((2, rows))

    @jax.jit
    def gradients(table, states):
        def loss(table, states):
            return vocabulary_loss(lambda x: product(x, output_kernel(table)), states, targets, weights)[0]

        return jax.grad(loss, (0, 1))(table, states.reshape(2, rows, 64))

    for ours, exact in zip(gradients(table, states.astype(jnp.bfloat16)), gradients(table, states), strict=True):
        assert jnp.linalg.norm(ours.astype(jnp.float32) - exact) < 0.03 * jnp.linalg.norm(exact)


def test_memory_is_that_of_a_piece():
    """Four times the tokens, and the temporary memory grows by their states alone."""

    def temporary(length, vocabulary=2048, width=4):
        head, states = jnp.zeros((width, vocabulary)), jnp.zeros((1, length, width))
        ids, weights = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length))

        def loss(head, states):
            return vocabulary_loss(lambda x: accumulate(x, head), states, ids, weights, rows=32)[0]

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(head, states).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 2048
    assert temporary(1024) - temporary(256) < 0.05 * 768 * logits


def test_rows_on_eight_devices_give_what_one_gives():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: E731
    # A vocabulary that four devices can share.
    head = {"kernel": place(HEAD["kernel"][:, :36], None, "tensor"), "bias": place(HEAD["bias"][:36], "tensor")}
    states, weights = place(STATES, "data"), place(WEIGHTS["some"], "data")
    targets = place(jnp.minimum(TARGETS, 35), "data")

    def loss(head, states):
        return vocabulary_loss(lambda x: logits_of(head, x), states, targets, weights, rows=8)[0]

    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(head, states)
    one = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), (head, states, targets, weights))

    def reference(head, states):
        return cross_entropy(logits_of(head, states), one[2], one[3])[0]

    expected = jax.value_and_grad(reference, (0, 1))(*one[:2])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
