"""One prepared zoo_stdlib and one small tokenizer for all tests of the data path."""

import pytest

from zoo.data import DataConfig, TokenizerConfig, fit_tokenizer, open_dataset


@pytest.fixture(scope="session")
def data_directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def stdlib(data_directory):
    return open_dataset(DataConfig(name="zoo_stdlib", directory=data_directory))


@pytest.fixture(scope="session")
def tokenizer(stdlib):
    return fit_tokenizer(stdlib.split("train"), TokenizerConfig(vocab_size=600, training_bytes=300_000))
