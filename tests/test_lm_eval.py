"""zoo under EleutherAI's evaluation harness: a task of its own kind on local files, scored as by hand from logits."""

import json

import jax
import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.peers
pytestmark = pytest.mark.filterwarnings("default")

from checkpoints import write_checkpoint
from lm_eval.tasks import TaskManager

import zoo
from zoo.bundle import Bundle
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    LanguageModelHead,
    MlpConfig,
    RotaryConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.data import TokenizerConfig, train_tokenizer
from zoo.lm_eval import ZooLM
from zoo.transformer import Transformer, example_inputs

QUESTIONS = [
    {"question": "The bank of the", "choices": ["river", "money in the bank"], "answer": 0},
    {"question": "Äpfel kosten", "choices": ["3,50 Euro", "naïve", "the river"], "answer": 1},
    {"question": "a number of", "choices": ["things", "a number of numbers"], "answer": 1},
]
TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
    "local_writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module", params=["run", "gpt2"])
def bundle(request, tmp_path_factory):
    if request.param == "gpt2":
        return zoo.load(write_checkpoint(tmp_path_factory.mktemp("lm") / "gpt2", "gpt2", "causal_lm"))
    attention = AttentionConfig(num_heads=2, head_size=8, rotary=RotaryConfig())
    stack = StackConfig(num_layers=1, width=16, attention=attention, mlp=MlpConfig(hidden_size=24), causal=True)
    config = TransformerConfig(
        embedding=EmbeddingConfig(width=16, vocab_size=300), decoder=stack, head=LanguageModelHead()
    )
    tokenizer = train_tokenizer([json.dumps(QUESTIONS, ensure_ascii=False)] * 9, TokenizerConfig(vocab_size=300))
    model = Transformer(config)
    params = model.init(jax.random.key(1), **example_inputs(config))["params"]
    return Bundle(model=model, params=params, config=config, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def results(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        ZooLM(bundle, batch_size=2), tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
    )


def score(bundle, given: list[int], wanted: list[int]) -> float:
    """Log-probability of ids after others, one row without padding."""
    logits = np.asarray(bundle(input_ids=np.array([given + wanted])).logits)[0].astype(np.float64)
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return sum(log_p[len(given) - 1 + place, token] for place, token in enumerate(wanted))


def encode(bundle, text: str) -> list[int]:
    return bundle.tokenizer.encode(text)


def begin(bundle) -> list[int]:
    return [] if bundle.origin is not None else [bundle.tokenizer.bos_id]


def test_choices_are_scored_as_by_hand(bundle, results):
    right = []
    for question, sample in zip(QUESTIONS, results["samples"]["local_choice"], strict=True):
        given = begin(bundle) + encode(bundle, question["question"])
        wholes = [begin(bundle) + encode(bundle, f"{question['question']} {choice}") for choice in question["choices"]]
        scores = [score(bundle, given, whole[len(given) :]) for whole in wholes]
        found = [response[0][0] for response in sample["resps"]]
        np.testing.assert_allclose(found, scores, rtol=1e-4)
        right.append(int(np.argmax(scores)) == question["answer"])
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_perplexity_is_that_of_every_token(bundle, results):
    first = [bundle.tokenizer.bos_id]
    nats = sum(score(bundle, first, encode(bundle, question["question"])) for question in QUESTIONS)
    num_bytes = sum(len(question["question"].encode()) for question in QUESTIONS)
    found = results["results"]["local_perplexity"]["byte_perplexity,none"]
    assert found == pytest.approx(np.exp(-nats / num_bytes), rel=1e-4)


def test_writing_is_greedy(bundle, results):
    for question, sample in zip(QUESTIONS, results["samples"]["local_writing"], strict=True):
        ids = begin(bundle) + encode(bundle, question["question"])
        written = np.asarray(bundle.generate(np.array([ids]), max_new_tokens=6, do_sample=False).sequences)
        assert sample["resps"][0][0] == bundle.tokenizer.decode(written[0, len(ids) :]).split("\n\n")[0]


def test_long_texts_are_read_through_windows(bundle):
    class Request:
        args = ("money in the bank and " * 12,)

    short = ZooLM(bundle, batch_size=2, max_length=17)
    ids, width = encode(bundle, Request.args[0]), 16
    expected = 0.0
    for start in range(0, len(ids), width):
        given = [bundle.tokenizer.bos_id] if start == 0 else [ids[start - 1]]
        window = ids[start : start + width]
        if len(window) < width and start:
            given, window = ids[len(ids) - width - 1 : start], window
        expected += score(bundle, given, window)
    assert short.loglikelihood_rolling([Request])[0] == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_asked_is_said(tmp_path):
    bert = zoo.load(write_checkpoint(tmp_path / "bert", "bert", "masked_lm"))
    with pytest.raises(ValueError, match="no decoder with a language-model head"):
        ZooLM(bert)
