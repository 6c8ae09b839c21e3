"""The report as text: its data is the inspection's, whatever the prompt holds; test_report_browser.py opens it."""

import dataclasses
import html.parser
import json

import numpy as np
import pytest

from zoo.inspection import Attended, Inspection
from zoo.inspection.lens import Lens
from zoo.inspection.report import Ablation, Picture, Shown, as_script, render, report_data, write_report

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<!--",
    "]]>",
    "$data ${script}",
    "é 漢字 🤖",
    "\u2028",
    "\ud800",
]


def attended(layers=2, heads=4, kv_heads=2, queries=7, keys=7, size=3, seed=0) -> Attended:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal((layers, 2, *shape)).astype(np.float32)

    scores = normal(heads, queries, keys)
    scores[..., -1] = -np.inf
    weights = np.exp(scores)
    return Attended(
        weights=weights / weights.sum(-1, keepdims=True), scores=scores, query=normal(queries, heads, size),
        key=normal(keys, kv_heads, size), value=100 * normal(keys, kv_heads, size),
        context=normal(queries, heads, size),
    )  # fmt: skip


def example() -> tuple[Inspection, Shown]:
    maps = {"encoder/attention": attended(), "decoder/cross_attention": attended(queries=3, seed=1)}
    states = {"encoder": np.zeros((3, 2, 7, 4)), "decoder": np.zeros((3, 2, 3, 4))}
    lens = Lens(ids=np.zeros((3, 2, 3, 2), np.int32), probabilities=np.full((3, 2, 3, 2), 0.25, np.float32))
    shown = Shown(
        title=HOSTILE[0], tokens={"encoder": HOSTILE, "decoder": ["a", "b", "c"]}, facts=HOSTILE, row=1, lens=lens,
        answers=[[HOSTILE[:2]] * 3] * 3,
        ablation=Ablation(effects={"encoder/attention": np.arange(8.0).reshape(2, 4)}, measure=HOSTILE[0], whole=1.5),
    )  # fmt: skip
    return Inspection(attentions=maps, hidden_states=states, output=None), shown


class Elements(html.parser.HTMLParser):
    """Start tags, and what the data's element holds, as a browser would split the page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.data, self._inside = [], [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        self.data += data if self._inside else ""

    def handle_endtag(self, tag):
        self._inside = False


def test_the_page_stands_alone_whatever_the_prompt_holds():
    page = render(*example())
    elements = Elements(page)
    assert elements.tags.count("script") == 2 and elements.addresses == [] and "http://" not in page
    found = json.loads(elements.data)
    assert found["title"] == HOSTILE[0] and found["maps"][0]["queries"] == HOSTILE and found["facts"] == HOSTILE
    page.encode("utf-8")


def test_json_survives_the_script_element():
    for text in HOSTILE:
        written = as_script({"text": text})
        assert json.loads(written) == {"text": text} and not set(written) & set("<>&") and written.isascii()
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_script([float("nan")])


def numbers(found: dict) -> np.ndarray:
    flat = [np.nan if level is None else level * found["unit"] for level in found["data"]]
    return np.array(flat).reshape(found["shape"])


def test_the_data_is_the_inspections():
    inspection, shown = example()
    data = report_data(inspection, shown)
    for entry in data["maps"]:
        seen = inspection.attentions[entry["path"]]
        for name in ("weights", "scores", "query", "key", "value", "context"):
            wanted = getattr(seen, name)[:, 1]
            finite = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isnan(numbers(entry[name])), ~finite)
            error = np.abs(numbers(entry[name]) - wanted)[finite].max()
            assert error <= 0.6e-4 * max(1.0, 10 ** np.ceil(np.log10(np.abs(wanted[finite]).max()))), name
    own, cross = data["maps"]
    assert (own["name"], cross["name"]) == ("encoder self-attention", "decoder cross-attention")
    assert (cross["queries"], cross["keys"]) == (["a", "b", "c"], HOSTILE)
    assert cross["rollout"] is None and cross["distance"] is None and numbers(own["rollout"]).shape == (2, 7, 7)
    assert data["lens"]["columns"] == ["a", "b", "c"]
    assert data["ablation"]["effects"]["encoder/attention"][1] == [4.0, 5.0, 6.0, 7.0]


def test_alignments_without_keys_are_shown():
    weights = np.random.default_rng(0).dirichlet(np.ones(7), (2, 3))
    seen = Inspection(
        attentions={"decoder/alignment": Attended.of_alignment(weights)}, hidden_states={}, output=None
    )  # fmt: skip
    (entry,) = report_data(seen, Shown(title="", tokens={"encoder": HOSTILE, "decoder": ["a", "b", "c"]}))["maps"]
    assert (entry["name"], entry["keys"], entry["query"]) == ("decoder alignment", HOSTILE, None)
    np.testing.assert_allclose(numbers(entry["weights"])[0, 0], weights[0], atol=1e-4)


def test_vectors_that_are_too_many_are_left_out_and_weights_refused(monkeypatch):
    inspection, shown = example()
    monkeypatch.setattr("zoo.inspection.report.MAX_NUMBERS", 100)
    assert all(entry["query"] is None and entry["weights"] for entry in report_data(inspection, shown)["maps"])
    monkeypatch.setattr("zoo.inspection.report.MAX_WEIGHTS", 200)
    data = report_data(inspection, shown)
    assert [entry["path"] for entry in data["maps"]] == ["decoder/cross_attention"]
    assert data["facts"] == [*HOSTILE, "encoder self-attention: too large for a page"]
    monkeypatch.setattr("zoo.inspection.report.MAX_WEIGHTS", 100)
    with pytest.raises(ValueError, match="560 attention weights"):
        report_data(inspection, shown)


def test_labels_must_fit():
    inspection, shown = example()
    with pytest.raises(ValueError, match=r"tokens\['decoder'\] has 2 labels, and there are 3 positions"):
        render(inspection, dataclasses.replace(shown, tokens={"encoder": HOSTILE, "decoder": ["a", "b"]}))


def test_the_picture_is_what_the_model_saw(tmp_path):
    import base64
    import io

    from PIL import Image

    pixels = np.linspace(-1, 1, 12).reshape(1, 3, 4)
    inspection, shown = example()
    picture = Picture(pixels=pixels, grid=(3, 2), first=1)
    data = report_data(inspection, dataclasses.replace(shown, picture=picture))
    assert [entry["pictured"] for entry in data["maps"]] == [True, True]
    kind, written = data["picture"]["source"].split(",")
    assert kind == "data:image/png;base64"
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(written))))
    np.testing.assert_array_equal(levels, np.round((pixels[0] + 1) * 127.5))
    path = write_report(tmp_path / "new" / "page.html", inspection, shown)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
