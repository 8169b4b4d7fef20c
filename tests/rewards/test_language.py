from __future__ import annotations

import time

import pytest

from agentrl.rewards.language import language

ENGLISH = "The train leaves at nine in the morning, and it is almost always late."
GERMAN = "Der Zug f\u00e4hrt um neun Uhr morgens ab und kommt fast immer zu sp\u00e4t."
CHINESE = "\u8fd9\u8f86\u706b\u8f66\u65e9\u4e0a\u4e5d\u70b9\u51fa\u53d1\uff0c\u51e0\u4e4e\u603b\u662f\u665a\u70b9\u3002"


def of(function, *texts):
    return function(prompts=[""] * len(texts), completions=list(texts), completion_ids=[[]] * len(texts))


def test_the_share_of_the_wanted_language():
    english, german = language("en"), language("de")
    assert of(english, ENGLISH, GERMAN, CHINESE) == [1.0, 0.0, 0.0]
    assert of(german, ENGLISH, GERMAN, CHINESE) == [0.0, 1.0, 0.0]
    (half,) = of(english, [{"role": "assistant", "content": f"{ENGLISH} {GERMAN}"}])
    assert 0.4 < half < 0.6
    assert of(language("zh,yue,wuu"), CHINESE, ENGLISH) == [1.0, 0.0]
    assert of(language(["en", "de"]), f"{ENGLISH}\n{GERMAN}") == [1.0]


@pytest.mark.parametrize(
    "text", ["", "42", "ok", "\n\n", "\\boxed{\\frac{1}{2}}", "$x^2 + y^2 = z^2$", "```python\nfor word in words: print(word)\n```"]
)
def test_nobody_can_tell_the_language_of_what_is_no_text(text):
    assert of(language("en"), text, [{"role": "assistant", "content": None}]) == [None, None]


def test_code_and_formulas_are_not_read():
    text = f"{GERMAN}\n```python\nprint('the quick brown fox jumps over the lazy dog')\n```\n$\\text{{this is the answer that was given}}$"
    assert of(language("de"), text) == [1.0]


def test_odd_letters_do_no_harm():
    assert of(language("en"), f"\ud800 {ENGLISH} \U0001f600") == [1.0]
    assert of(language("en"), ENGLISH * 5000) == [1.0]


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"got languages xx; known: .*de"):
        language("en,xx")


@pytest.mark.parametrize("opening", ["\\[", "\\(", "\\[\\(", "$", "`"])
def test_formulas_that_never_close_take_no_time(opening):
    started = time.process_time()
    of(language("en"), opening * 30_000)
    assert time.process_time() - started < 2
