"""stub"""
from __future__ import annotations
from dataclasses import dataclass
from agentrl.records import Score
@dataclass
class Grade:
    verdict: str
    reason: str = ""
    def score(self) -> Score:
        return Score(value=float(self.verdict == "correct"))
def completion_text(c):
    if isinstance(c, str): return c
    return next((str(m.get("content") or "") for m in reversed(c) if m["role"] == "assistant"), "")
def answer_text(t):
    i = t.rfind("\\boxed{")
    if i < 0: return t.strip()
    j = t.find("}", i)
    return t[i+7:j] if j >= 0 else None
def grade(*, gold, answer):
    return Grade("correct" if answer_text(answer) == gold else "wrong")
def math_reward(*, prompts, completions, completion_ids, answer, **_):
    return [float(grade(gold=a, answer=completion_text(c)).verdict == "correct") for a, c in zip(answer, completions)]
