"""The report in a real browser, without a network: its controls are driven and the page must answer.

It needs Chromium and its driver (Debian: `apt-get install chromium chromium-driver`) and selenium, and skips without.
Screenshots go to artifacts/inspection, or to the folder that ZOO_ARTIFACTS names.
"""

import os
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS, inputs
from test_capture import bundle_of

from zoo.inspection import ablate_heads, inspect, logit_lens
from zoo.inspection.report import Ablation, Picture, Shown, write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER),
        reason="NOT TESTED, the report in a browser: no Chromium here; apt-get install chromium chromium-driver",
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ARTIFACTS = Path(os.environ.get("ZOO_ARTIFACTS", Path(__file__).parents[2] / "artifacts")) / "inspection"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--force-device-scale-factor=1", "--window-size=1280,1600",
)  # fmt: skip
HOSTILE = "</script><script>window.hacked=1</script>"
SOURCE = [HOSTILE, "the", "cat", "—", "漢字", "🤖", "&", '"', "'", "<b>", "\n", "sat"]
TARGET = ["die", "Katze", "saß", "da", "und", "schlief", "sehr", "tief"]


@pytest.fixture(scope="module")
def text():
    """An encoder-decoder's inspection, and its page."""
    bundle, given = bundle_of("t5"), inputs(CONFIGS["t5"], batch=1)
    given["decoder_input_ids"] = given["decoder_input_ids"][:, : len(TARGET)]

    def loss(params):
        return jnp.square(bundle.model.apply({"params": params}, **given).logits).mean()

    seen, lens = inspect(bundle, **given), logit_lens(bundle, num_shown=3, **given)
    effects = ablate_heads(loss, bundle.params)
    shown = Shown(
        title='A report of "</script>" & others', tokens={"encoder": SOURCE, "decoder": TARGET}, facts=["tiny"],
        ablation=Ablation(effects=effects, measure="loss, nats", whole=float(loss(bundle.params))), lens=lens,
        answers=[[[f"word {answer}" for answer in cell] for cell in layer] for layer in lens.ids[:, 0].tolist()],
    )  # fmt: skip
    return seen, shown, write_report(ARTIFACTS / "text.html", seen, shown)


@pytest.fixture(scope="module")
def image():
    """An image model's inspection, and its page: a bright cross in the dark."""
    bundle, given = bundle_of("vit"), inputs(CONFIGS["vit"], batch=1)
    pixels = given["pixel_values"] * 0.1 - 1
    pixels[..., 4:8, :] += 1.5
    seen = inspect(bundle, pixel_values=pixels)
    labels = ["class", *(f"{row + 1},{column + 1}" for row in range(3) for column in range(3))]
    shown = Shown(
        title="A picture", tokens={"encoder": labels}, picture=Picture(pixels=pixels[0], grid=(3, 3), first=1)
    )
    return seen, shown, write_report(ARTIFACTS / "image.html", seen, shown)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A page with its controls by name."""

    def __init__(self, driver, path: Path):
        self.driver = driver
        driver.get_log("browser")
        driver.get(path.as_uri())

    def find(self, css: str):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def said(self, panel: str) -> str:
        return self.find(f"#{panel}-said").text

    def choose(self, control: str, value: int) -> None:
        Select(self.find(f"#{control}")).select_by_value(str(value))

    def chosen(self) -> tuple[int, ...]:
        return tuple(int(self.find(f"#{name}").get_property("value")) for name in ("kind", "layer", "head", "token"))

    def press(self, *keys) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def point_at(self, element, x: int = 0, y: int = 0) -> None:
        webdriver.ActionChains(self.driver, duration=0).move_to_element_with_offset(element, x, y).perform()

    def pixels(self, canvas: str) -> str:
        return self.driver.execute_script(f"return document.getElementById('{canvas}').toDataURL()")

    def shares(self, chips: str) -> np.ndarray:
        """What the chips' titles say, from 0 to 1."""
        titles = [chip.get_attribute("title") for chip in self.all(f"#{chips} .chip")]
        return np.array([float(re.search(r"([\d.]+) %", title)[1]) / 100 for title in titles])

    def shot(self, name: str) -> None:
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1280, min(6000, height + 200))
        assert self.driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))
        self.driver.set_window_size(1280, 1600)


def opened(browser, path: Path):
    """A page, and afterwards that nothing went wrong in it."""
    yield Page(browser, path)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors


@pytest.fixture
def page(browser, text):
    yield from opened(browser, text[2])


@pytest.fixture
def picture(browser, image):
    yield from opened(browser, image[2])


def test_it_opens_alone_and_a_hostile_prompt_stays_text(page):
    assert page.find("#title").text == 'A report of "</script>" & others' == page.driver.title
    assert page.driver.execute_script("return window.hacked") is None
    assert page.driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    chips = [chip.get_property("textContent") for chip in page.all("#queries .chip")]
    assert chips[0] == HOSTILE and chips[4:6] == ["漢字", "🤖"] and chips[9] == "<b>"
    page.shot("text-light")


def test_the_controls_change_what_is_shown_and_it_is_the_inspections(page, text):
    seen, shown, _ = text
    paths = list(seen.attentions)
    for kind, layer, head, token in ((0, 0, 0, 3), (0, 1, 2, 5), (paths.index("decoder/cross_attention"), 1, 3, 2)):
        for control, value in (("kind", kind), ("layer", layer), ("head", head), ("token", token)):
            page.choose(control, value)
        weights = seen.attentions[paths[kind]].weights[layer, 0, head, token]
        np.testing.assert_allclose(page.shares("keys"), weights, atol=0.0051)
        said = page.said("tokens")
        assert said.startswith(f"Layer {layer + 1}, head {head + 1}:")
        assert shown.tokens["encoder"][int(weights.argmax())].strip("\n") in said
    assert [chip.text for chip in page.all("#queries .chip")] == TARGET
    page.choose("head", -1)
    mean = seen.attentions[paths[kind]].weights[layer, 0, :, token].mean(0)
    np.testing.assert_allclose(page.shares("keys"), mean, atol=0.0051)
    assert "mean of all heads" in page.said("tokens") and not page.all("#numbers td.vector")


def test_pointing_at_a_token_shows_where_it_looks_until_the_pointer_leaves(page, text):
    seen, _, _ = text
    before = page.said("tokens")
    page.point_at(page.all("#queries .chip")[6])
    np.testing.assert_allclose(
        page.shares("keys"), seen.attentions["encoder/attention"].weights[0, 0, 0, 6], atol=0.0051
    )
    assert page.said("tokens") != before
    page.point_at(page.find("h1"))
    assert page.said("tokens") == before
    page.all("#queries .chip")[6].click()
    assert page.chosen()[3] == 6 and page.all("#queries .chip")[6].get_attribute("aria-pressed") == "true"


def test_the_keyboard_is_enough(page):
    page.find("#token").send_keys(Keys.TAB)
    first = page.driver.switch_to.active_element.get_attribute("data-index")
    page.press(Keys.ARROW_RIGHT)
    now = page.driver.switch_to.active_element.get_attribute("data-index")
    assert int(now) == int(first) + 1
    page.press(Keys.ENTER)
    assert page.chosen()[3] == int(now)
    page.press(Keys.TAB)  # one stop for all tokens: next is the map
    assert page.driver.switch_to.active_element.get_attribute("id") == "matrix"
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert f"({int(now) + 2}) looks at" in page.said("matrix") and "(2):" in page.said("matrix")
    page.press(Keys.ENTER)
    assert page.chosen()[3] == int(now) + 1


def test_the_map_is_read_and_chosen_from(page, text):
    canvas, before = page.find("#matrix"), page.pixels("matrix")
    size, left, top = page.driver.execute_script("return [matrix.size, matrix.left, matrix.top]")
    box = canvas.rect
    x, y = left + 4.5 * size - box["width"] / 2, top + 7.5 * size - box["height"] / 2
    page.point_at(canvas, int(x), int(y))
    share = text[0].attentions["encoder/attention"].weights[0, 0, 0, 7, 4]
    found = re.search(r"\((\d+)\) looks at .* \((\d+)\): ([\d.]+) %", page.said("matrix"))
    assert (found[1], found[2]) == ("8", "5") and abs(float(found[3]) / 100 - share) < 0.0051
    canvas_at = webdriver.ActionChains(page.driver, duration=0).move_to_element_with_offset(canvas, int(x), int(y))
    canvas_at.click().perform()
    assert page.chosen()[3] == 7 and page.pixels("matrix") != before


def test_heads_and_bars_lead_to_their_head(page, text):
    page.all("#heads button")[6].click()  # four heads a layer
    assert page.chosen()[:3] == (0, 1, 2)
    figures = [option.text for option in page.all("#figure option")]
    assert len(figures) == 3
    for place, wanted in ((0, "bits"), (1, "positions"), (2, "silenced")):
        Select(page.find("#figure")).select_by_index(place)
        assert wanted in page.said("figure").lower()
    effects = text[1].ablation.effects
    assert float(page.all("#heads button")[6].text) == pytest.approx(effects["encoder/attention"][1, 2], rel=0.06)
    bars = page.all("#bars button")
    values = [float(bar.text.split()[-1]) for bar in bars]
    assert values == sorted(values, reverse=True) and len(bars) == 16
    path, (layer, head) = max(
        ((path, np.unravel_index(found.argmax(), found.shape)) for path, found in effects.items()),
        key=lambda place: effects[place[0]][place[1]],
    )
    bars[0].click()
    assert page.chosen()[:3] == (list(text[0].attentions).index(path), layer, head)
    page.find("#more-bars").click()
    assert len(page.all("#bars button")) == sum(found.size for found in effects.values()) == 24


def test_one_token_in_numbers(page, text):
    seen = text[0].attentions["encoder/attention"]
    page.choose("layer", 1)
    page.choose("head", 2)
    page.choose("token", 4)
    rows = page.all("#numbers tbody tr")
    assert len(rows) == 14 and "query of “漢字”" in rows[0].text and "context vector" in rows[-1].text
    page.find("#as-numbers").click()
    cells = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in page.all("#numbers tbody tr")]

    def vector(cell):
        return np.array(cell.split(), float)

    np.testing.assert_allclose(vector(cells[0][3]), seen.query[1, 0, 4, 2], atol=0.0061)
    np.testing.assert_allclose(vector(cells[-1][4]), seen.context[1, 0, 4, 2], atol=0.0061)
    for place, cell in enumerate(cells[1:-1]):
        assert float(cell[1]) == pytest.approx(seen.scores[1, 0, 2, 4, place], abs=0.051)
        np.testing.assert_allclose(vector(cell[3]), seen.key[1, 0, place, 2], atol=0.0061)
        np.testing.assert_allclose(vector(cell[4]), seen.value[1, 0, place, 2], atol=0.0061)


def test_rollout_is_of_self_attention_alone(page, text):
    from zoo.inspection import rollout

    page.choose("layer", 1)
    page.choose("token", 3)
    wanted = rollout(text[0].attentions["encoder/attention"].weights)[1, 0, 3]
    np.testing.assert_allclose(page.shares("rollout"), wanted, atol=0.0051)
    page.choose("kind", list(text[0].attentions).index("decoder/cross_attention"))
    assert not page.find("#panel-rollout").is_displayed()


def test_the_lens_tells_the_runners_up(page, text):
    lens = text[1].lens
    cells = page.all("#lens td button")
    assert len(cells) == 3 * len(TARGET) and cells[-1].text == f"word {lens.ids[-1, 0, -1, 0]}"
    cells[0].click()
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    said = page.said("lens")
    assert said.startswith("After layer 1, at “Katze”")
    assert all(f"word {answer}”" in said for answer in lens.ids[1, 0, 1])


def test_light_and_dark(page):

    def colour():
        return page.find("body").value_of_css_property("background-color")

    before, label = colour(), page.find("#theme").text
    page.find("#theme").click()
    assert colour() != before and page.find("#theme").text != label
    page.choose("kind", 2)
    page.shot("text-dark")
    page.driver.set_window_size(420, 1600)
    wide = page.driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert page.driver.save_screenshot(str(ARTIFACTS / "text-narrow.png"))
    page.driver.set_window_size(1280, 1600)
    assert wide <= 0, "the page is wider than a narrow window"


def test_the_picture_shows_where_the_model_looks(picture, image):
    weights = image[0].attentions["encoder/attention"].weights
    assert picture.find("#panel-picture").is_displayed() and not picture.find("#panel-ablation").is_displayed()
    top = int(weights[0, 0, 0, 0, 1:].argmax())
    assert f"row {top // 3 + 1}, column {top % 3 + 1}" in picture.said("picture")
    looked = picture.pixels("picture")
    picture.shot("image")
    picture.find("input[value=rollout]").click()
    rolled = picture.pixels("picture")
    picture.find("input[value=none]").click()
    assert len({looked, rolled, picture.pixels("picture")}) == 3
    picture.find("input[value=weights]").click()
    canvas = picture.find("#picture")
    webdriver.ActionChains(picture.driver, duration=0).move_to_element(canvas).click().perform()
    assert picture.chosen()[3] == 5  # the patch in the middle, after the class token
    canvas.send_keys(Keys.ARROW_LEFT)
    assert picture.chosen()[3] == 4
    top = int(weights[0, 0, 0, 4, 1:].argmax())
    assert f"row {top // 3 + 1}, column {top % 3 + 1}" in picture.said("picture")
    picture.find("#class-token").click()
    assert picture.chosen()[3] == 0 and picture.pixels("picture") == looked
