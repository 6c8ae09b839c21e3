"""Chat templates: what real ones write, and an end to those that reach for code or for endless work."""

import pytest
from timing import cpu_time

from zoo.tokenization.chat import render

MESSAGES = [{"role": "user", "content": "hello " * 50}, {"role": "assistant", "content": "x"}] * 3
GROWS = "{%% set n = namespace(s='aaaa') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ n.s }}"


def test_what_real_templates_use():
    template = """
{%- for m in messages if m.role != 'system' -%}
    {{ '<' ~ m.role ~ '>' + m['content'].strip() | upper }}{% generation %}!{% endgeneration %}
    {%- if loop.last %}{{ '%d of %s' | format(loop.length, {'a': 1} | tojson) }}{% break %}{% endif -%}
{%- endfor -%}
{% if add_generation_prompt %}{{ '{}:'.format('assistant') }}{% endif %}"""
    said = render(template, [{"role": "user", "content": " hi "}] * 2, add_generation_prompt=True)
    assert said == '<user>HI!<user>HI!2 of {"a": 1}assistant:'


def test_a_long_chat():
    turns = [{"role": "user", "content": "word " * 1000}] * 500
    assert len(render("{% for m in messages %}{{ m.role + ': ' + m.content | trim }}{% endfor %}", turns)) == 500 * 5005


ENDLESS = {
    "huge range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "much output": "{% for i in range(90000) %}{{ messages[0].content * 100 }}{% endfor %}",
    "joined": GROWS % "{% set n.s = n.s ~ n.s %}",
    "added": GROWS % "{% set n.s = n.s + n.s %}",
    "block": GROWS % "{% set x %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = x %}",
    "filter": GROWS % "{% set n.s = [n.s, n.s] | join %}",
    "method": GROWS % "{% set n.s = n.s.replace('a', 'aa') %}",
    "macros": "{% macro m(n) %}{{ m(n - 1) if n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{{ 10**9 * 'a' }}",
    "width": "{{ 'a'.center(10**10) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format method": "{{ '{:>10000000000}'.format(1) }}",
    "indent": "{{ {'a': 1} | tojson(indent=10**10) }}",
}
ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "change": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "blocks": "{% for i in [1] %}" * 150 + "{% endfor %}" * 150,
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "zero": "{{ 1 / 0 }}",
    "refusal": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("template", (ENDLESS | ESCAPES).values(), ids=ENDLESS | ESCAPES)
def test_hostile_templates_end_soon(template):
    with cpu_time() as timed, pytest.raises(ValueError, match="the chat template"):
        render(template, MESSAGES)
    assert timed.seconds < 1


@pytest.mark.parametrize(
    "name", ["raise_exception.__globals__", "strftime_now.__globals__", "messages|attr('__class__')"]
)
def test_attributes_of_python_are_not_there(name):
    assert render("{{ " + name + " }}", MESSAGES) == ""
