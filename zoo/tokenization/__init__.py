"""The tokenizer that a pretrained checkpoint came with: text, pairs and chats to ids and back.

`tokenizer.py` is what users hold; `files.py` finds it in a folder, `gguf.py` in a GGUF file; `builders.py` makes it
from the older vocabulary files; `pieces.py` serves the two families whose ids SentencePiece does not know; `symbols.py`
is for models that read letter by letter. Those that zoo trains are in `zoo.data.tokenizer`.
"""

from zoo.tokenization.files import load_tokenizer
from zoo.tokenization.gguf import gguf_tokenizer
from zoo.tokenization.symbols import SymbolTokenizer
from zoo.tokenization.tasks import TaskTokenizer
from zoo.tokenization.tokenizer import PretrainedTokenizer, UnreadTokenizer

__all__ = [
    "PretrainedTokenizer",
    "SymbolTokenizer",
    "TaskTokenizer",
    "UnreadTokenizer",
    "gguf_tokenizer",
    "load_tokenizer",
]
