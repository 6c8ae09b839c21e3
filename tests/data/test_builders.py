"""The embedded sets: what is in them, that they repeat, and that a killed build leaves nothing half-made."""

import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from zoo.data import DataConfig, open_dataset
from zoo.data.builders import dates, phrases, stdlib

BUILD = """
from zoo.data import DataConfig, open_dataset
open_dataset(DataConfig(name="zoo_stdlib", directory={!r}))
"""

# Work for a second: ten years of days.
BUILD_DATES = """
import datetime
from zoo.data import DataConfig, open_dataset
from zoo.data.builders import dates
dates.LAST = datetime.date(1909, 12, 31)
open_dataset(DataConfig(name="zoo_dates", directory={!r}))
"""


def examples(source):
    return [source[i] for i in range(len(source))]


class TestStdlib:
    def test_sizes_and_fields(self, stdlib):
        train, validation = (examples(stdlib.split(split)) for split in ("train", "validation"))
        sizes = [sum(len(document["text"].encode()) for document in split) for split in (train, validation)]
        assert sizes[0] > 6_000_000
        assert 300_000 < sizes[1] < 700_000
        assert all(set(document) == {"text", "name"} and document["text"].strip() for document in train + validation)
        names = [document["name"] for document in train + validation]
        assert {"json/decoder.py", "asyncio/base_events.py", "pydoc_data/topics.py:compound"} <= set(names)
        assert len(set(names)) == len(names)

    def test_no_file_and_no_text_is_on_both_sides(self, stdlib):
        train, validation = (examples(stdlib.split(split)) for split in ("train", "validation"))
        for part in (lambda d: d["text"], lambda d: d["name"].partition(":")[0]):
            assert not {part(d) for d in train} & {part(d) for d in validation}
        assert not any(d["name"].startswith("pydoc_data/topics.py") for d in validation)

    def test_topics_do_not_repeat_one_another(self, stdlib):
        texts = [d["text"].strip() for d in examples(stdlib.split("train")) if "topics.py:" in d["name"]]
        assert len(texts) > 30
        assert sum(text in other for text in texts for other in texts) == len(texts)

    def test_what_differs_between_installations_is_left_out(self, tmp_path):
        kept = ["ast.py", "json/tool.py", "unittest/case.py"]
        dropped = [
            *(
                "test/test_ast.py",
                "unittest/test/case.py",
                "idlelib/run.py",
                "tkinter/font.py",
                "encodings/cp437.py",
            ),
            *(
                "site-packages/numpy.py",
                "sitecustomize.py",
                "_sysconfigdata__linux.py",
                "json/__pycache__/tool.py",
            ),
            *("json/notes.txt", "config-3.11/python-config.py"),
        ]
        for name in kept + dropped:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"# {name}")
        assert stdlib.list_modules(tmp_path) == kept
        found = list(stdlib.read_documents(tmp_path))
        assert found == [{"name": name, "text": f"# {name}"} for name in kept]

    def test_source_files_are_decoded_as_they_declare(self, tmp_path):
        (tmp_path / "ast.py").write_bytes("# coding: latin-1\r\nx = 'é'\r\n".encode("latin-1"))
        assert next(stdlib.read_documents(tmp_path))["text"] == "# coding: latin-1\nx = 'é'\n"

    def test_a_second_build_holds_the_same_examples_in_the_same_order(self, stdlib, tmp_path):
        command = [sys.executable, "-W", "error", "-c", BUILD.format(str(tmp_path))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")
        # Not the same file: protobuf writes the fields of an example in an order of its own.
        version = ".".join(map(str, sys.version_info[:3]))
        assert (tmp_path / "zoo_stdlib" / "edition_1" / version / "dataset_info.json").exists()
        again = open_dataset(DataConfig(name="zoo_stdlib", directory=str(tmp_path)))
        for split in ("train", "validation"):
            assert examples(again.split(split)) == examples(stdlib.split(split))


class TestDates:
    def test_days_are_shared_out_evenly(self):
        days = [datetime.date.fromordinal(n) for n in range(dates.FIRST.toordinal(), dates.LAST.toordinal() + 1)]
        drawn = [dates.draw(day) for day in days]
        assert (days[0].isoformat(), days[-1].isoformat()) == ("1900-01-01", "2099-12-31")
        for split, low, high in ((False, 60_000, 100_000), (True, 2_000, 2_500)):
            side = [(locale, style) for is_held_out, locale, style in drawn if is_held_out == split]
            assert low < len(side) < high
            shares = Counter(side)
            assert len(shares) == len(dates.LOCALES) * len(dates.FORMATS)
            assert min(shares.values()) > 0.5 * len(side) / len(shares)

    def test_every_day_is_once_on_one_side(self, monkeypatch):
        monkeypatch.setattr(dates, "LAST", datetime.date(1901, 12, 31))
        sides = [[e["target"] for e in dates.write_days(split)] for split in ("train", "validation")]
        assert len(sides[0]) > 10 * len(sides[1]) > 0
        assert sorted(sides[0] + sides[1]) == sorted({*sides[0], *sides[1]})
        assert len(sides[0] + sides[1]) == 730

    def test_no_text_could_mean_two_days(self):
        # Over every locale and format, also those that were not drawn for the day.
        meaning = {}
        for year in (1907, 2012):
            day = datetime.date(year, 1, 1)
            while day.year == year:
                for locale in dates.LOCALES:
                    for style in dates.FORMATS:
                        text = dates.format_date(day, style, locale)
                        assert str(year) in text
                        assert meaning.setdefault(text, day) == day
                day += datetime.timedelta(days=1)
        assert len(set(dates.LOCALES)) >= 8
        assert any(re.search("[а-я]", text) for text in meaning)
        assert any(re.search("[一-龯]", text) for text in meaning)

    def test_the_example_of_the_docstring(self):
        day = datetime.date(2026, 11, 21)
        assert dates.format_date(day, "full", "fr") == "samedi 21 novembre 2026"

    def test_it_opens_by_name(self, monkeypatch, tmp_path):
        monkeypatch.setattr(dates, "LAST", datetime.date(1900, 12, 31))
        dataset = open_dataset(DataConfig(name="zoo_dates", directory=str(tmp_path)))
        train, validation = (examples(dataset.split(split)) for split in ("train", "validation"))
        assert train == list(dates.write_days("train"))
        assert validation == list(dates.write_days("validation"))
        assert len(train) + len(validation) == 365


class TestPreparation:
    def test_a_build_killed_at_any_moment_is_made_good_by_the_next(self, tmp_path):
        command = [sys.executable, "-c", BUILD_DATES.format(str(tmp_path))]
        for seconds in (0.0, 0.1, 0.3):
            process = subprocess.Popen(command)
            # From when it starts to write, so that the moments differ whatever the machine.
            deadline = time.monotonic() + 60
            while process.poll() is None and not list(tmp_path.glob(".building-*")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
            complete = list(tmp_path.glob("zoo_dates/edition_1/*"))
            assert all((folder / "dataset_info.json").exists() for folder in complete)
        subprocess.run(command, check=True)
        assert len(list(tmp_path.glob("zoo_dates/edition_1/*/dataset_info.json"))) == 1

    def test_two_processes_may_build_at_once(self, tmp_path):
        command = [sys.executable, "-W", "error", "-c", BUILD_DATES.format(str(tmp_path))]
        processes = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
        assert not list(tmp_path.glob(".building-*"))
        assert len(list(tmp_path.glob("zoo_dates/edition_1/*"))) == 1

    def test_old_remains_are_cleared_and_young_ones_kept(self, monkeypatch, tmp_path):
        monkeypatch.setattr(dates, "LAST", datetime.date(1900, 12, 31))
        old, young = tmp_path / ".building-old", tmp_path / ".building-young"
        old.mkdir()
        young.mkdir()
        os.utime(old, (0, 0))
        open_dataset(DataConfig(name="zoo_dates", directory=str(tmp_path)))
        assert not old.exists()
        assert young.exists()


class TestPhrases:
    @pytest.fixture
    def splits(self, monkeypatch):
        """The pairs of a few expressions."""
        monkeypatch.setattr(phrases, "KINDS", {kind: (draw, 60) for kind, (draw, _) in phrases.KINDS.items()})
        phrases.list_expressions.cache_clear()
        yield {split: list(phrases.write_pairs(split)) for split in ("train", "validation")}
        phrases.list_expressions.cache_clear()

    def test_no_held_out_text_is_in_train(self, splits):
        texts = {
            split: {text for pair in pairs for text in (pair["source"][7:], pair["target"])}
            for split, pairs in splits.items()
        }
        assert len(splits["validation"]) > 30 and not texts["train"] & texts["validation"]

    def test_all_kinds_between_all_languages(self, splits):
        train = splits["train"]
        assert {pair["kind"] for pair in train} == set(phrases.KINDS)
        directions = {(pair["source_language"], pair["target_language"]) for pair in train}
        assert len(directions) == len(phrases.LANGUAGES) * (len(phrases.LANGUAGES) - 1)
        for pair in train:
            assert pair["source"].startswith(f">>{pair['target_language']}<< ")
            assert not any(text.endswith(("-day", "-year")) for text in (pair["source"], pair["target"]))
            assert pair["target"] and "\u00a0" not in pair["target"] and "\u202f" not in pair["target"]

    def test_draws_repeat(self, splits):
        phrases.list_expressions.cache_clear()
        assert {split: list(phrases.write_pairs(split)) for split in splits} == splits

    def test_the_set_opens(self, splits, tmp_path):
        dataset = open_dataset(DataConfig(name="zoo_phrases", directory=str(tmp_path)))
        assert {split: examples(dataset.split(split)) for split in splits} == splits


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    dataset = open_dataset(DataConfig(name="zoo_digits", directory=str(tmp_path)))
    train, validation = (examples(dataset.split(split)) for split in ("train", "validation"))
    assert len(train) + len(validation) == 1797 and 300 < len(validation) < 420
    assert dataset.classes("label") == tuple("0123456789")
    assert train[0]["image"].shape == (8, 8, 1) and train[0]["image"].dtype == "uint8"
    assert {int(example["label"]) for example in validation} == set(range(10))
    assert not {e["image"].tobytes() for e in train} & {e["image"].tobytes() for e in validation}
