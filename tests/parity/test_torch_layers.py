"""Blocks against torch's own Transformer layers with the same weights, live; skipped where torch is not installed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from models import ALL_BIASES, attention, stack

from zoo.config import MlpConfig, NormConfig
from zoo.kernels import Causal, Full, Segments
from zoo.layers import Sight
from zoo.stack import Block, Surroundings

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

WIDTH, HEADS, HIDDEN = 16, 4, 24


def heads(matrix, bias):
    """A torch projection [N*H, D] as [D, N, H]."""
    return {
        "kernel": matrix.T.reshape(WIDTH, HEADS, WIDTH // HEADS),
        "bias": bias.reshape(HEADS, WIDTH // HEADS),
    }


def attention_params(module) -> dict:
    query, key, value = module.in_proj_weight.detach().numpy().reshape(3, WIDTH, WIDTH)
    biases = module.in_proj_bias.detach().numpy().reshape(3, WIDTH)
    out = module.out_proj
    return {
        "query": heads(query, biases[0]),
        "key": heads(key, biases[1]),
        "value": heads(value, biases[2]),
        "output": {
            "kernel": out.weight.detach().numpy().T.reshape(HEADS, WIDTH // HEADS, WIDTH),
            "bias": out.bias.detach().numpy(),
        },
    }


def linear(module) -> dict:
    return {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}


def norm(module) -> dict:
    return {"scale": module.weight.detach().numpy(), "bias": module.bias.detach().numpy()}


def block_params(layer, slot: str) -> dict:
    """The parameters of a torch encoder or decoder layer under zoo's names."""
    branches = ["attention", "cross_attention", "mlp"] if hasattr(layer, "multihead_attn") else ["attention", "mlp"]
    params = {f"{branch}_{slot}_norm": norm(getattr(layer, f"norm{place}")) for place, branch in enumerate(branches, 1)}
    params["attention"] = attention_params(layer.self_attn)
    if "cross_attention" in branches:
        params["cross_attention"] = attention_params(layer.multihead_attn)
    params["mlp"] = {"up": linear(layer.linear1), "down": linear(layer.linear2)}
    return params


def make(kind, norm_first: bool):
    torch.manual_seed(0)
    layer = kind(WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first)
    with torch.no_grad():  # norms start at ones and zeros: move them, so that a swapped norm shows
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer.eval()


def config(norm_first: bool, **fields):
    base = stack(
        attention=attention(biases=ALL_BIASES),
        mlp=MlpConfig(hidden_size=HIDDEN, bias=True),
        norm=NormConfig(epsilon=1e-5),
        norm_slots=("input",) if norm_first else ("residual",),
    )
    return dataclasses.replace(base, **fields)


def surroundings(mask, memory=None) -> Surroundings:
    sight = Sight(mask)
    spans = ("global", "local")
    memory_sight = Sight(Full()) if memory is not None else None
    return Surroundings(dict.fromkeys(spans, sight), dict.fromkeys(spans), memory, memory_sight)


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer(norm_first):
    layer = make(torch.nn.TransformerEncoderLayer, norm_first)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 7, WIDTH)).astype(np.float32)
    padding = np.array([[0] * 7, [0] * 4 + [1] * 3])
    with torch.no_grad():
        expected = layer(torch.tensor(x), src_key_padding_mask=torch.tensor(padding, dtype=torch.bool)).numpy()
    params = block_params(layer, "input" if norm_first else "residual")
    mask = Segments(jnp.ones((2, 7), jnp.int32), jnp.asarray(1 - padding))
    out, _ = Block(config(norm_first), "global", jnp.float32).apply({"params": params}, x, surroundings(mask))
    np.testing.assert_allclose(out[padding == 0], expected[padding == 0], atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_layer_and_gradient(norm_first):
    import jax

    layer = make(torch.nn.TransformerDecoderLayer, norm_first)
    rng = np.random.default_rng(2)
    x, memory, weights = (rng.normal(size=(2, n, WIDTH)).astype(np.float32) for n in (6, 9, 6))
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    x_torch = torch.tensor(x, requires_grad=True)
    expected = layer(x_torch, torch.tensor(memory), tgt_mask=causal)
    (expected * torch.tensor(weights)).sum().backward()
    params = block_params(layer, "input" if norm_first else "residual")
    block = Block(config(norm_first, causal=True, cross_attention=attention(biases=ALL_BIASES)), "global", jnp.float32)

    def run(x):
        return block.apply({"params": params}, x, surroundings(Causal(), jnp.asarray(memory)))[0]

    np.testing.assert_allclose(run(x), expected.detach().numpy(), atol=1e-5)
    gradient = jax.grad(lambda x: (run(x) * weights).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, x_torch.grad.numpy(), atol=1e-5)
