"""Models that came from no checkpoint, saved as the architecture of the reference that they are."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from jax.sharding import AxisType
from models import CONFIGS, build, inputs
from tiers import tiered

import zoo
from zoo.bundle import Bundle
from zoo.data import Tokenizer, TokenizerConfig
from zoo.data.tokenizer import train_tokenizer
from zoo.formats.safetensors import SafetensorsFile
from zoo.recipes.tiny import bert_tiny, gpt_tiny, translate_dates, vit_tiny
from zoo.transformer import Transformer, example_inputs
from zoo.weights import CheckpointError

FITTING = {
    "bert": "bert", "modernbert": "modernbert", "labels": "modernbert", "gpt2": "gpt2", "mistral": "gpt2",
    "reviews": "gpt2", "opt": "opt", "llama": "llama", "t5": "t5",
}  # fmt: skip
"""Small models of the core that are one of the reference's."""
TEXTS = ["def encode(text):\n    return text.split()\n" * 30, "the quick brown fox, über 1984 ▁ \x10 ␤\n" * 30]


def made(config) -> Bundle:
    """A model of a recipe's plan, of random parameters."""
    tables = {name: getattr(config, name) for name in ("embedding", "decoder_embedding")}
    tables = {name: table and dataclasses.replace(table, vocab_size=320) for name, table in tables.items()}
    model = Transformer(dataclasses.replace(config, **tables))
    params = jax.jit(model.init)(jax.random.key(0), **example_inputs(config))["params"]
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=320))
    return Bundle(model=model, params=params, config=model.config, tokenizer=tokenizer)


@pytest.mark.parametrize("name", tiered(FITTING, [*FITTING][::2]))
def test_the_architecture_that_a_model_is(name, tmp_path):
    bundle, again, batch = saved(name, tmp_path)
    assert again.origin.architecture.model_type == FITTING[name]
    assert np.array_equal(again(**batch).logits, bundle(**batch).logits)


def saved(name: str, folder: Path) -> tuple[Bundle, Bundle, dict]:
    """A model of zoo's own, the same saved and loaded again, and inputs for both."""
    model, params = build(name)
    bundle = Bundle(model=model, params=params, config=CONFIGS[name])
    return bundle, zoo.load(zoo.save(bundle, folder)), inputs(CONFIGS[name])


@pytest.mark.peers
@pytest.mark.parametrize("name", FITTING)
def test_the_reference_opens_a_model_of_zoo_s_own(name, tmp_path):
    bundle, again, batch = saved(name, tmp_path)
    logits = bundle(**batch).logits
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    cls = getattr(transformers, again.origin.fields["architectures"][0])
    theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        wanted = theirs.eval()(**{key: torch.tensor(value).long() for key, value in batch.items()}).logits.numpy()
    assert np.abs(wanted - logits).max() <= 1e-4 * max(1, np.abs(wanted).max() / 10)


def written_by_a_recipe_s_model(folder: Path) -> tuple[Bundle, np.ndarray, np.ndarray]:
    """A saved model, a prompt, and what it writes after it, as after loading."""
    bundle = made(gpt_tiny().model)
    again = zoo.load(zoo.save(bundle, folder))
    ids = bundle.tokenizer.encode(TEXTS[1])
    assert again.tokenizer.encode(TEXTS[1]) == [Tokenizer.bos_id, *ids]
    assert again.tokenizer.decode(ids) == TEXTS[1]
    prompt = np.array([[Tokenizer.bos_id, *ids[:9]]])
    with jax.default_matmul_precision("highest"):
        written = bundle.generate(prompt, max_new_tokens=8).sequences
        assert np.array_equal(again.generate(prompt, max_new_tokens=8).sequences, written)
    return bundle, prompt, np.asarray(written)


def test_a_recipe_with_its_tokenizer(tmp_path):
    written_by_a_recipe_s_model(tmp_path)


@pytest.mark.peers
def test_the_reference_opens_a_recipe_with_its_tokenizer(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    bundle, prompt, written = written_by_a_recipe_s_model(tmp_path)
    ids = bundle.tokenizer.encode(TEXTS[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXTS[1])["input_ids"] == [Tokenizer.bos_id, *ids]
    assert tokenizer.decode(ids) == TEXTS[1] and tokenizer.pad_token_id == Tokenizer.pad_id
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    found = model.generate(torch.tensor(prompt), max_new_tokens=8, do_sample=False).numpy()
    assert np.array_equal(found, written[:, : found.shape[1]])


def test_what_no_architecture_describes_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"ForMaskedLM, differs in encoder.norm_slots"):
        zoo.save(made(bert_tiny().model), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_attention_s_scale_moves_into_the_queries_of_a_t5(tmp_path):
    """And a ViT is one whatever training drops."""
    bundle = made(translate_dates().model)
    again = zoo.load(zoo.save(bundle, tmp_path / "t5"))
    assert again.origin.head == "seq2seq_lm" and again.config.encoder.attention.scale == 1.0
    batch = {"input_ids": np.array([[5, 70, 90, 2]]), "decoder_input_ids": np.array([[1, 80, 81]])}
    np.testing.assert_allclose(again(**batch).logits, bundle(**batch).logits, atol=1e-5)

    vit = Transformer(vit_tiny().model)
    params = jax.jit(vit.init)(jax.random.key(0), **example_inputs(vit.config))["params"]
    saved = zoo.save(Bundle(model=vit, params=params, config=vit.config), tmp_path / "vit", labels=list("0123456789"))
    again = zoo.load(saved)
    assert again.origin.architecture.model_type == "vit" and again.origin.fields["id2label"]["9"] == "9"


def same(a: Bundle, b: Bundle) -> bool:
    return a.config == b.config and all(map(np.array_equal, jax.tree.leaves(a.params), jax.tree.leaves(b.params)))


def test_zoo_s_own_layout_takes_any_model(tmp_path):
    bundle = made(bert_tiny().model)
    folder = zoo.save(bundle, tmp_path / "own", layout="zoo")
    again = zoo.load(folder)
    assert same(again, bundle) and again.tokenizer == bundle.tokenizer and again.origin is None
    assert "library_name: zoo" in (folder / "README.md").read_text()
    for layout in ("zoo", "transformers"):
        with pytest.raises(ValueError, match=r"has a model\.json, .*; choose another folder"):
            zoo.save(bundle, folder, layout=layout)
    with pytest.raises(ValueError, match="layout is 'torch'"):
        zoo.save(bundle, folder, layout="torch")


@pytest.mark.parametrize("case", ["gpt2-causal_lm", "clip-base"])
def test_a_checkpoint_there_and_back_through_zoo_s_own_layout(case, tmp_path):
    model_type, head = case.split("-")
    fields, shapes, _ = small.read_recorded(model_type, head)
    bundle = zoo.load(small.write_folder(tmp_path / "first", fields, shapes))
    own = zoo.load(
        zoo.save(bundle, tmp_path / "own", layout="zoo"), mesh=jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,))
    )
    assert same(own, bundle) and own.origin.head == head
    assert any(leaf.sharding.num_devices == 8 and not leaf.is_fully_replicated for leaf in jax.tree.leaves(own.params))
    zoo.save(own, tmp_path / "last")
    first, last = (SafetensorsFile(tmp_path / name / "model.safetensors") for name in ("first", "last"))
    assert all(np.array_equal(first.read(name), last.read(name)) for name in first.shapes)
    card = (tmp_path / "last" / "README.md").read_text()
    assert fields["architectures"][0] in card and "library_name: transformers" in card
    with pytest.raises(ValueError, match="head is 'poem'; "):
        zoo.load(tmp_path / "own", head="poem")
