"""Code graded by unit tests: functions, programs that read and print, and pytest projects, each in sandboxes of its own.

The verdict is made where the candidate cannot reach: the tests run in another sandbox and ask it through a channel of plain values.
"""

from __future__ import annotations

from agentrl.rewards.unit_tests.grade import CaseGrade, CodeGrade
from agentrl.rewards.unit_tests.grading import grade_code
from agentrl.rewards.unit_tests.reward import code_reward, code_share_reward

__all__ = ["CaseGrade", "CodeGrade", "code_reward", "code_share_reward", "grade_code"]
