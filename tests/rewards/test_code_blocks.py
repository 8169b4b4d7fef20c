import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.rewards.code_blocks import blocks, defines_name, extract_code

F, G = "def f(x):\n    return x\n", "print(1)\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (F, F),
        ("    return x\n", "    return x\n"),
        (f"Text.\n```python\n{F}```\nMore.", F),
        (f"```\n{F}```", F),
        (f"```py\n{F}```", F),
        (f"~~~ Python3\n{F}~~~~", F),
        (f"```python\n{G}```\nthen\n```python\n{F}```", F),
        (f"```python\n{F}```\nuse\n```python\n{G}```", F),
        (f"```bash\nls\n```\n```python\n{F}```\n```json\n{{}}\n```", F),
        (f"<think>```python\n{G}```</think>\n```python\n{F}```", F),
        (f"````python\n{F}```\nx\n````", f"{F}```\nx\n"),
        ("```bash\nls\n```", None),
        (f"```python\n{F}", None),
        (f"```python\n{G}```\n```python\n{F}", G),
        (f"<think>\n```python\n{F}```", None),
        ("", ""),
        ("Use `f` inline.", "Use `f` inline."),
        ("```python\n```", ""),
        (f"   ```python title=\"a\"\n{F}   ```  \n", F),
        (f"```python\r\n{F}```\r\n", F),
    ],
)  # fmt: skip
def test_the_rule(text, code):
    assert extract_code(text, "f") == code


def test_without_a_name_the_last_block_counts():
    assert extract_code(f"```python\n{F}```\n```python\n{G}```") == G


@pytest.mark.parametrize(
    ("code", "defines"),
    [(F, True), ("class f:\n    pass", True), ("async def f(): ...", True), ("f = lambda: 1", True), ("f == 1", False),
     ("def ff(): ...", False), ("    def f(): ...", False), ("def f(x) broken", True), ("", False)],
)  # fmt: skip
def test_names_that_code_defines(code, defines):
    assert defines_name(code, "f") is defines


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["```", "```python\n", "~~~", "\n", "x = 1", " ", "<think>", "</think>", "````"]), max_size=12).map("".join)
)
def test_any_text_is_read(text):
    code = extract_code(text, "f")
    assert code is None or isinstance(code, str)
    assert blocks(text) is None or "```" in text or "~~~" in text


@pytest.mark.parametrize("line", ["~" * 20_000 + "`", "```" + " " * 20_000 + "`x", "`" * 20_000 + "{`", "```" + "a" * 20_000 + "`"])
def test_no_line_takes_long_to_read(line):
    started = time.process_time()
    extract_code(line, "f")
    assert time.process_time() - started < 1


def test_only_line_feeds_end_lines():
    code = "def f():\n    return 'a\x0bb\x1cc\x85d\u2028e'\n"
    assert extract_code(f"```python\n{code}```", "f") == code


def test_a_block_in_a_list_is_indented_with_its_fence():
    inside = "".join(f"   {line}\n" for line in F.splitlines())
    assert extract_code(f"1. So:\n   ```python\n{inside}   ```\n", "f") == F
    assert extract_code(f"1. So:\n   ```python\n{F}\n   ```\n", "f") == F + "\n"
