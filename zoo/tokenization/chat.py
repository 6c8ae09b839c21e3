"""Chat templates: Jinja from a checkpoint, run in a sandbox that reaches no code and does a bounded amount of work.

Jinja's own sandbox closes the way to Python's insides. It ends no loop within loops and no text that doubles itself, so
whatever makes work is charged for here: passes through loops, calls, and what they return, by its length.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jinja2
import jinja2.sandbox
from jinja2 import ext, nodes, visitor

MAX_WORK = 200_000
"""Passes, calls as ten of them, 64ths of the characters and items that they return; one more for each of a chat."""
MAX_ARGUMENT = 1_000_000
"""The largest number that a function or a filter takes, as a column's width or a range's end."""
_MAX_BITS = 10_000
_MAX_DEPTH = 20
_WIDE = re.compile(r"\d{5}|\*|\{[^{}]*:[^{}]*\{")
"""In a format: a width of five digits, or one that is an argument."""


def render(template: str, messages: Sequence[dict[str, Any]], **variables: Any) -> str:
    """The text of a conversation.

    Raises:
        ValueError: a template that refuses the messages, cannot be read, or does not end.
    """
    sandbox = _Sandbox(MAX_WORK + len(repr((messages, variables))))
    try:
        return sandbox.from_string(template).render(messages=list(messages), **variables)
    except _RefusedError:
        raise
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, SyntaxError) as error:
        raise ValueError(f"the chat template cannot be used: {str(error)[:200]}") from None
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"the chat template cannot be used: {error or 'it takes too much memory'}") from None


class _RefusedError(ValueError):
    """The message says why."""


def _refuse(message: str):
    raise _RefusedError(f"the chat template refuses these messages: {message}")


class _Generation(ext.Extension):
    """`{% generation %}`, which marks what an assistant says for training."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's, with an end to its work; one for each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, max_work: int):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.work, self.max_work = 0, max_work
        del self.globals["lipsum"]
        self.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
        self.filters = {name: self._paid(name, function) for name, function in self.filters.items()}
        self.filters |= {"paid": self.charge, "passes": self._passes}

    def charge(self, value: Any = None) -> Any:
        """The value, paid for."""
        if hasattr(value, "__next__"):
            value = [self.charge(item) for item in value]
        self.work += 1 + (len(value) // 64 if hasattr(value, "__len__") else 0)
        if self.work > self.max_work:
            raise _RefusedError("the chat template does not come to an end, or writes too much")
        return value

    def concat(self, parts: Iterable[str]) -> str:
        """What a template, a macro or a block has written."""
        return "".join([self.charge(part) for part in parts])

    def call(self, context, function, /, *arguments, **named):
        """Every call comes here; it takes as long as ten passes."""
        self.work += 9
        self.charge()
        _check(getattr(function, "__self__", None), arguments, named)
        return self.charge(super().call(context, function, *arguments, **named))

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        """And every sum, product, power and remainder."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise _RefusedError("the chat template makes a number too large")
        elif operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(times, int) and len(sized) * times > MAX_ARGUMENT:
                raise _RefusedError("the chat template makes a text too long")
        elif operator == "%":
            _check(left, (), {})
        return self.charge(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """And every `.format`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check(value.__self__, (), {})
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Paying().visit(super()._parse(source, name, filename))

    def _passes(self, values: Any) -> Any:
        """What a loop goes through, paid for one by one."""
        values = values if hasattr(values, "__len__") else [self.charge(value) for value in values]
        self.work += len(values)
        return self.charge(values)

    def _paid(self, name: str, function: Callable) -> Callable:
        """A filter that pays for what it returns."""

        @functools.wraps(function)
        def paid(*arguments, **named):
            _check(arguments[0] if name == "format" else None, arguments[1:], named)
            return self.charge(function(*arguments, **named))

        return paid


class _Paying(visitor.NodeTransformer):
    """Makes loops pay for their passes, and `~` for what it joins: the sandbox is asked about neither."""

    depth = 0

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.depth += 1
        if self.depth > _MAX_DEPTH:  # Python's own limit, which Jinja comes to only after a second
            raise _RefusedError(f"the chat template has more than {_MAX_DEPTH} loops within one another")
        self.generic_visit(node)
        self.depth -= 1
        node.iter = _filter(node.iter, "passes")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        return _filter(self.generic_visit(node), "paid")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def _check(text: Any, arguments: Sequence[Any], named: dict[str, Any]) -> None:
    """Raise ValueError for a width, a count or a format that asks for very much."""
    numbers = [value for value in (*arguments, *named.values()) if isinstance(value, int | float)]
    if any(not -MAX_ARGUMENT <= number <= MAX_ARGUMENT for number in numbers):
        raise _RefusedError(f"the chat template asks for {max(numbers, key=abs)} of something")
    if isinstance(text, str) and ("%" in text or "{" in text) and _WIDE.search(text):
        raise _RefusedError("the chat template has a format of a width that zoo does not follow")
