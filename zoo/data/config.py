"""What a run says about its data: which set, where it is kept, how it is cut into tokens.

Standard library only: the command line reads these classes, and their field docstrings are its help.
"""

import dataclasses

# 256 byte pieces, 5 special tokens, and room for the characters themselves.
SMALLEST_VOCABULARY = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A byte-pair vocabulary learned by SentencePiece from the training split. Any text round-trips."""

    vocab_size: int = 4096
    """Number of token ids, the 5 special tokens and 256 byte tokens included."""
    cross_words: bool = True
    """Let one token span spaces and punctuation, up to the end of a line: fewer tokens for the same text."""
    split_digits: bool = True
    """Make every decimal digit a token of its own, so that numbers are spelt the same way everywhere."""
    max_piece_length: int = 32
    """Longest token, in characters."""
    training_bytes: int = 10_000_000
    """Learn from a fixed random sample of the training split of about this many UTF-8 bytes."""

    def __post_init__(self):
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} is too small: 256 byte tokens, 5 special tokens and "
                f"the characters themselves need at least {SMALLEST_VOCABULARY}"
            )
        if self.max_piece_length < 1:
            raise ValueError(f"tokenizer.max_piece_length={self.max_piece_length} must be at least 1")
        if self.training_bytes < 1:
            raise ValueError(f"tokenizer.training_bytes={self.training_bytes} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One dataset, and its tokenizer."""

    name: str = "zoo_stdlib"
    """A TFDS name ("imdb_reviews", "wikipedia/20230601.en"), or an embedded set, built at first use:
    zoo_stdlib (the running Python's documentation and sources), zoo_dates (days in many languages, and as
    ISO 8601), zoo_phrases (measures, money, days and places in eight languages), zoo_parallel
    (the same, as pairs of one meaning), zoo_digits (scanned digits), zoo_pictures (captioned letters and
    shapes), zoo_questions (questions about API documentation)."""
    path: str | None = None
    """Your own text instead of `name`: a .txt, .jsonl, .tsv or .json (SQuAD) file, a folder of text files (one
    document each), a folder that holds train.* and validation.*, or one of pictures with a metadata.jsonl
    (file_name and caption) or captions.tsv."""
    directory: str | None = None
    """Where prepared TFDS data is kept. Absent: $ZOO_DATA_DIR, else ~/.cache/zoo/tfds."""
    train_split: str = "train"
    """The TFDS split, or slice of one ("train[:99%]"), to train on."""
    validation_split: str = "validation"
    """The TFDS split, or slice of one ("train[99%:]", "test"), to measure on."""
    text_key: str = "text"
    """The field that holds a document, where documents are read."""
    pair_key: str | None = None
    """The field that holds the second text, where pairs of texts are classified."""
    source_key: str = "source"
    """The field that holds the input, where pairs are read. The first column of a .tsv file."""
    target_key: str = "target"
    """The field that holds the output, where pairs are read. The second column of a .tsv file."""
    image_key: str = "image"
    """The field that holds a picture."""
    caption_key: str = "caption"
    """The field that holds a picture's caption."""
    label_key: str = "label"
    """The field that holds a class, as a number or by name."""
    validation_fraction: float = 0.05
    """The share of a local file's documents held out, chosen by a hash of their text."""
    tokenizer: TokenizerConfig | None = TokenizerConfig()
    """How text becomes token ids. Absent: the tokenizer of the checkpoint that a run starts from."""

    def __post_init__(self):
        if not self.name:
            raise ValueError("data.name is empty; give a TFDS name, or zoo_stdlib")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1, both excluded"
            )
        keys = [field.name for field in dataclasses.fields(self) if field.name.endswith("_key")]
        keys = [key for key in keys if getattr(self, key) is not None]
        for field in ("train_split", "validation_split", *keys):
            if not getattr(self, field):
                raise ValueError(f"data.{field} is empty; leave it out to get its default")
        if self.source_key == self.target_key:
            raise ValueError(f"data.source_key and data.target_key are both {self.source_key!r}: name two")
        if self.path is not None and (self.train_split, self.validation_split) != ("train", "validation"):
            raise ValueError(
                f"data.train_split and data.validation_split name TFDS splits, but data.path={self.path!r} "
                "is local: use data.validation_fraction, or a folder with train.* and validation.*"
            )
