"""What API documentation says of each parameter, of what is returned and of errors, as spans of its text.

Read are the sections of NumPy's style and of Google's. A span is (begin, end) in characters, without white space at
its ends.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Span = tuple[int, int]
Kind = Literal["parameter", "return", "error"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("Parameters", "Other Parameters", "Args", "Arguments"), "parameter"),
    **dict.fromkeys(("Returns", "Return"), "return"),
    **dict.fromkeys(("Raises",), "error"),
}
"""What stands in a section, by its title."""
LONGEST_MEANING = 30
"""Words; a longer first sentence says too much to be the answer to a question."""
LONGEST_TYPE = 8
"""Words; what is longer is a description in the place of a type."""

_NUMPY = re.compile(r"^(?P<title>[A-Z][A-Za-z ]*)\n-{3,}[ ]*$", re.MULTILINE)
_GOOGLE = re.compile(r"^(?P<indent>[ ]*)(?P<title>[A-Z][A-Za-z]*(?: [A-Za-z]+)?):[ ]*$", re.MULTILINE)
_NAME = re.compile(r"\*{0,2}(?P<name>[A-Za-z_]\w*)")
# A type in brackets (Google) or behind a colon (NumPy), and what follows.
_GOOGLE_TYPE = re.compile(r"\*{0,2}[A-Za-z_]\w*[ ]*\((?P<type>(?:[^()\n]|\([^()\n]*\))+)\)[ ]*:")
_NUMPY_TYPE = re.compile(r"[^:\n]*?[ ]?:[ ]+(?P<type>\S[^\n]*)")
_QUALIFIED = re.compile(r"(?:,[ ]*|^)(?:optional|required|keyword|default|shape|must\b|\*optional)", re.IGNORECASE)
_SENTENCE = re.compile(r"\S.*?(?:(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?=\.(?:\s|$))|(?=\n[ ]*\n)|\Z)", re.DOTALL)
_VALUE = r"(?P<value>``[^`\n]+``|`[^`\n]+`|'[^'\n]*'|\"[^\"\n]*\"|True\b|False\b|None\b|-?\d[\w.+-]*\w|-?\d)"
_DEFAULT = re.compile(rf"\b[Dd]efault(?:s)?(?:[ ](?:is|to|value[ ]is|value:)|:|=)?\s+{_VALUE}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is said of one thing. A span is None where it is not said, or not in a few words."""

    kind: Kind
    name: str
    """Of a parameter or an error; empty for what is returned."""
    name_at: Span | None = None
    type: Span | None = None
    default: Span | None = None
    meaning: Span | None = None
    """Its first sentence, without the full stop."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a text under a title."""

    title: str
    underlined: bool
    """As in NumPy's style; else the title ends in a colon and what follows is indented."""
    begin: int
    body: int
    """Where what stands under the title begins."""
    end: int


def find_sections(text: str) -> list[Section]:
    """The sections of both styles, in order, none inside another."""
    titles = [(match, None) for match in _NUMPY.finditer(text)]
    # An indented line that ends in a colon opens a section where more deeply indented lines follow.
    titles += [(match, len(match["indent"])) for match in _GOOGLE.finditer(text)]
    titles.sort(key=lambda item: item[0].start())
    found: list[Section] = []
    for place, (match, indent) in enumerate(titles):
        if found and match.start() < found[-1].end:
            continue
        if indent is None:
            later = (other.start() for other, style in titles[place + 1 :] if style is None)
            end = next(later, len(text))
        else:
            end = _indented_end(text, match.end(), indent)
        title, underlined = match["title"], indent is None
        found.append(Section(title=title, underlined=underlined, begin=match.start(), body=match.end(), end=end))
    return found


def _indented_end(text: str, start: int, indent: int) -> int:
    """Where the lines from `start` on cease to be blank or indented by more than `indent`."""
    line = re.compile(rf"\n(?:[ ]*(?=\n|\Z)|[ ]{{{indent + 1},}}[^\n]*)")
    while match := line.match(text, start):
        start = match.end()
    return start


def read_entries(text: str) -> Iterator[Entry]:
    """What the sections of a text say."""
    for section in find_sections(text):
        kind = KINDS.get(section.title)
        spans = _split_entries(text, section) if kind is not None else []
        if kind == "return" and spans:
            begin, end = spans[0]
            yield _read_numpy_return(text, begin, end) if section.underlined else _read_return(text, begin, section.end)
        elif kind is not None:
            for begin, end in spans:
                yield from _read_named(text, begin, end, kind)


def _split_entries(text: str, section: Section) -> list[Span]:
    """The lines of a section that are indented least, each with the deeper ones that follow."""
    body = text[section.body : section.end]
    indents = [len(match[1]) for match in re.finditer(r"\n([ ]*)\S", body)]
    if not indents:
        return []
    starts = [match.end() for match in re.finditer(rf"\n[ ]{{{min(indents)}}}(?=\S)", body)]
    return [
        (section.body + begin, section.body + end) for begin, end in zip(starts, [*starts[1:], len(body)], strict=True)
    ]


def _read_named(text: str, begin: int, end: int, kind: Kind) -> Iterator[Entry]:
    """The entries of one header: "a, b : int" has two."""
    header_end = _line_end(text, begin, end)
    google = _GOOGLE_TYPE.match(text, begin, header_end)
    colon = re.compile(r"\*{0,2}[\w.]+[ ]*:(?=\s)").match(text, begin, header_end)
    type_span, described = None, header_end
    if google is not None:
        type_span, described = _type_span(text, *google.span("type")), google.end()
    elif colon is not None and text[colon.end() - 2] != " ":
        described = colon.end()
    elif (numpy := _NUMPY_TYPE.match(text, begin, header_end)) is not None:
        type_span = _type_span(text, *numpy.span("type"))
    names_end = re.compile(r"[ ]*[:(]|$", re.MULTILINE).search(text, begin, header_end)
    names = text[begin : names_end.start() if names_end else header_end]
    if not re.fullmatch(r"\*{0,2}[\w.]+(?:,[ ]*\*{0,2}\w+)*", names):
        return
    default = _DEFAULT.search(text, begin, end)
    for name in re.finditer(r"[\w.]+", names):
        yield Entry(
            kind=kind,
            name=name[0],
            name_at=(begin + name.start(), begin + name.end()),
            type=type_span if kind == "parameter" else None,
            default=None if default is None else default.span("value"),
            meaning=_first_sentence(text, described, end),
        )


def _read_numpy_return(text: str, begin: int, end: int) -> Entry:
    """The type, perhaps behind a name ("out : ndarray"), and below it what it is."""
    header_end = _line_end(text, begin, end)
    named = re.compile(r"[\w, ]+[ ]:[ ]+").match(text, begin, header_end)
    type_span = _type_span(text, named.end() if named else begin, header_end)
    return Entry(kind="return", name="", type=type_span, meaning=_first_sentence(text, header_end, end))


def _read_return(text: str, begin: int, end: int) -> Entry:
    """A sentence, perhaps behind a type and a colon."""
    typed = re.compile(r"(?P<type>[\w.`~:\[\], ]*[\w`\]]):[ \n]+(?=\S)").match(text, begin, end)
    type_span = None
    if typed is not None and len(typed["type"].split()) <= 3:
        begin, type_span = typed.end(), _type_span(text, *typed.span("type"))
    return Entry(kind="return", name="", type=type_span, meaning=_first_sentence(text, begin, end))


def _line_end(text: str, begin: int, end: int) -> int:
    found = text.find("\n", begin, end)
    return end if found < 0 else found


def _type_span(text: str, begin: int, end: int) -> Span | None:
    """A type without "optional", its default and the like; None for a sentence."""
    qualified = _QUALIFIED.search(text[begin:end])
    end = begin + qualified.start() if qualified else end
    said = text[begin:end]
    return None if len(said.split()) > LONGEST_TYPE or ". " in said else trim(text, begin, end)


def _first_sentence(text: str, begin: int, end: int) -> Span | None:
    match = _SENTENCE.search(text, begin, end)
    span = None if match is None else trim(text, *match.span())
    if span is None or not 2 <= len(text[slice(*span)].split()) <= LONGEST_MEANING:
        return None
    return span


def trim(text: str, begin: int, end: int) -> Span | None:
    """The span without white space and commas at its ends; None without a letter or digit inside."""
    said = text[begin:end]
    if not re.search(r"[A-Za-z0-9]", said) or "%(" in said:
        return None
    begin += len(said) - len(said.lstrip())
    return begin, begin + len(said.strip().rstrip(",:;"))


def read_signature(signature: str) -> dict[str, tuple[Span | None, Span | None]]:
    """Where a signature says a parameter's annotation and its default. ASCII: `ast` counts bytes."""
    head = "def "
    try:
        (function,) = ast.parse(f"{head}{signature}: pass").body
    except SyntaxError:
        return {}
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args

    def span(node: ast.expr | None) -> Span | None:
        if node is None or node.end_col_offset is None:
            return None
        return trim(signature, node.col_offset - len(head), node.end_col_offset - len(head))

    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [*([None] * (len(plain) - len(arguments.defaults))), *arguments.defaults]
    pairs = [*zip(plain, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {argument.arg: (span(argument.annotation), span(default)) for argument, default in pairs}
