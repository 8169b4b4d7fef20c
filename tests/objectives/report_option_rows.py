"""The report's rows of corrections and options, on GRPO unless the title says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import report_choices as choices
import report_claims as claims
import report_credit as credit
import report_differences as differences
import report_enumeration as world
import report_hand as hand
import report_hand_options as worked
import report_papers as papers
import report_trl_options as checks
import report_trl_rows as trl
import report_whole as whole
from report_gold import FOREIGN
from report_preference_rows import PREFERENCES
from report_rows import GROUP, LATE, NO_STD, OBJECTIVES, UNCLIPPED, Case, Row, rewarded
from report_self import OWN
from report_teacher import TAUGHT_TEXTS
from report_texts import TEXTS, TextRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from report_hand import Hand

Options = dict[str, Any]
GRPO: Options = {"name": "grpo"}


def correction(
    name: str,
    hand_worked: Callable[[], Hand],
    check: Any,
    factor: Any,
    anchor: str,
    widest: Options,
    title: str = "",
    learner: Options | None = None,
    **options: Any,
) -> Row:
    """A correction that strikes some tokens off policy, and one too wide to strike any, with which nothing is clipped."""

    def on_grpo(chosen: Options) -> Options:
        return {"name": "grpo", "corrections": [{"name": name, **chosen}]}

    wide = on_grpo(widest) | {"scale_rewards": "none", "normalization": "constant"} | UNCLIPPED
    first = Case(
        options=on_grpo(options),
        paper=rewarded(GROUP, papers.clip(0.2, anchor=anchor, factor=factor)),
        worlds=LATE,
        differs_from=GRPO,
    )
    return Row(
        title=title or name,
        section="Corrections, on grpo",
        cases=(first,),
        claims=(claims.policy_gradient(wide, 0.25), claims.single_tokens(wide, 0.25, where=world.LATE)),
        hand=hand_worked,
        trl=check,
        learner={} if learner is None else on_grpo(learner),
    )


CORRECTIONS: tuple[Row, ...] = (
    correction("tis", worked.tis, checks.tis, choices.truncated(1.1), "start", {"max": 1e9}, max=1.1),
    correction("sequence_tis", worked.sequence_tis, checks.sequence_tis, choices.truncated_product(1.05), "start", {"max": 1e9}, max=1.05),
    correction("icepop", worked.icepop, checks.icepop, choices.popped(0.85, 1.2), "start", {"min": 0, "max": 1e9}, min=0.85, max=1.2),
    correction(
        "sequence_mask",
        worked.sequence_mask_product,
        checks.sequence_mask,
        choices.masked_sequence(0.7, 1.1, root=False),
        "sampler",
        {"max": 1e9},
        "sequence_mask, product",
        min=0.7,
        max=1.1,
    ),
    correction(
        "sequence_mask",
        worked.sequence_mask_geometric,
        checks.geometric_mask,
        choices.masked_sequence(0.85, 1.1, root=True),
        "sampler",
        {"measure": "geometric", "max": 1e9},
        "sequence_mask, geometric",
        learner={"measure": "geometric", "min": 0.95, "max": 1.02},
        measure="geometric",
        min=0.85,
        max=1.1,
    ),
    correction(
        "off_policy_mask",
        worked.off_policy_mask,
        checks.off_policy_mask,
        choices.masked_drift(0.05),
        "sampler",
        {"threshold": 1e9},
        learner={"threshold": 0.01},
        threshold=0.05,
    ),
    correction("veto", worked.veto, checks.veto, choices.vetoed(0.9), "sampler", {"below": 1e-9}, learner={"below": 0.65}, below=0.9),
    correction("ratio_cap", worked.ratio_cap, checks.ratio_cap, choices.capped_tokens(1.1), "sampler", {"max": 1e9}, max=1.1),
)


def kl(estimator: str, check: Any, *, weighted: bool, compare: Any = differences.straight) -> Row:
    options: Options = {"beta": 0.1, "kl_estimator": estimator, "kl_correction": weighted}
    kind = {"kl_estimator": estimator, "kl_correction": weighted}
    if weighted:
        exact = (
            claims.kl_gradient(kind, world.ON_POLICY, says="d KL(policy || ref) on policy"),
            claims.kl_gradient(kind, world.OFF_POLICY, says="off policy"),
        )
    elif estimator == "k2":
        exact = (claims.kl_gradient(kind, world.ON_POLICY, says="d KL(policy || ref) on policy"),)
    else:
        exact = (claims.kl_gradient(kind, world.ON_POLICY, of_reference=True, says="d KL(ref || policy) on policy"),)
    return Row(
        title=f"KL {estimator} in the loss, {'weighted' if weighted else 'plain'}",
        section="Options, on grpo unless named",
        cases=(Case(options=GRPO | options, paper=rewarded(GROUP, papers.clip(0.2), kl=(0.1, estimator, weighted)), differs_from=GRPO),),
        claims=exact,
        hand=lambda: worked.kl(estimator, weighted=weighted),
        differences=compare,
        trl=check,
    )


def option(title: str, hand_worked: Callable[[], Hand], check: Any, paper: Any, options: Options, *, groups: int = 1, **fields: Any) -> Row:
    first = Case(options={"name": "grpo", **options}, paper=paper, groups=groups, differs_from=None if "name" in options else GRPO)
    return Row(title=title, section="Options, on grpo unless named", cases=(first,), hand=hand_worked, trl=check, **fields)


PARTS = {"right": 1.0, "style": 0.5}

OPTIONS: tuple[Row, ...] = (
    kl("k1", checks.only_k3, weighted=True, compare=differences.weighted_kl),
    kl("k2", checks.only_k3, weighted=True, compare=differences.weighted_kl),
    kl("k3", checks.kl_weighted, weighted=True),
    kl("k2", checks.only_k3, weighted=False),
    kl("k3", checks.kl_plain, weighted=False),
    option(
        "KL k1 in the reward",
        worked.kl_in_reward,
        checks.kl_in_reward,
        rewarded(credit.compared(reward=credit.less_kl(0.1)), papers.clip(0.2)),
        {"beta": 0.1, "kl_in": "reward", "kl_estimator": "k1"},
        claims=(
            claims.policy_gradient(
                {
                    "name": "grpo",
                    "beta": 0.3,
                    "kl_in": "reward",
                    "kl_estimator": "k1",
                    "scale_rewards": "none",
                    "normalization": "constant",
                },
                0.25,
                beta=0.3,
                says="dJ with the KL on policy",
            ),
        ),
    ),
    option(
        "entropy bonus",
        worked.entropy_bonus,
        checks.entropy_bonus,
        rewarded(GROUP, papers.clip(0.2), entropy=0.01),
        {"entropy_coef": 0.01},
        claims=(claims.entropy_gradient(0.3),),
    ),
    option(
        "entropy bonus, adaptive",
        worked.adaptive_entropy,
        checks.adaptive_entropy,
        rewarded(GROUP, papers.clip(0.2), entropy=0.015),
        {"entropy_coef": 0.01, "entropy_target": 2.0, "after": {"entropy": 1.5}},
    ),
    option(
        "top_entropy",
        worked.top_entropy,
        checks.top_entropy,
        rewarded(GROUP, papers.clip(0.2), mark=choices.undecided(0.5)),
        {"top_entropy": 0.5},
    ),
    option(
        "turn_discount",
        worked.turn_discount,
        trl.not_in_trl,
        rewarded(credit.by_turn(0.5, "group"), papers.clip(0.2)),
        {"turn_discount": 0.5},
        claims=(
            claims.policy_gradient(
                {"name": "grpo", "turn_discount": 1.0, "scale_rewards": "none", "normalization": "constant"},
                0.25,
                says="dJ on policy, undiscounted",
            ),
        ),
    ),
    option(
        "normalize_then_sum (GDPO)",
        worked.normalize_then_sum,
        checks.normalize_then_sum,
        rewarded(credit.normalized_then_summed(PARTS), papers.clip(0.2)),
        {"reward_aggregation": "normalize_then_sum", "reward_weights": PARTS},
        groups=2,
    ),
    option(
        "scale_rewards batch",
        worked.scale_batch,
        checks.scale_batch,
        rewarded(credit.compared(scale="batch"), papers.clip(0.2)),
        {"scale_rewards": "batch"},
        groups=2,
    ),
    option(
        "baseline leave_one_out",
        worked.leave_one_out,
        checks.leave_one_out,
        rewarded(credit.compared("siblings"), papers.clip(0.2)),
        {"baseline": "leave_one_out"},
        claims=(
            claims.policy_gradient(
                {"name": "grpo", "baseline": "leave_one_out", "scale_rewards": "none", "normalization": "constant"}, 0.5
            ),
        ),
    ),
    option(
        "baseline batch",
        worked.batch_baseline,
        trl.not_in_trl,
        rewarded(credit.compared("batch", "none"), papers.clip(0.2)),
        {"baseline": "batch", "scale_rewards": "none"},
        groups=2,
    ),
    option("delta (two-sided clip)", worked.delta, checks.delta, rewarded(GROUP, papers.clip(0.2, delta=1.3)), {"delta": 1.3}),
    option(
        "dapo: overlong punishment",
        worked.overlong,
        checks.overlong,
        rewarded(credit.compared(reward=credit.overlong(3, 2)), papers.clip(0.2, 0.28), "token_mean"),
        {"name": "dapo", "overlong_length": 3, "overlong_cache": 2},
        learner={"overlong_length": 12, "overlong_cache": 8},
    ),
    option(
        "ppo: a value head",
        hand.ppo,
        trl.ppo,
        OBJECTIVES[[row.title for row in OBJECTIVES].index("ppo")].cases[0].paper,
        {"name": "ppo", "critic": "head"},
        learner={"epochs": 1},
    ),
    option(
        "dppo: kl",
        hand.dppo_kl,
        trl.not_in_trl,
        rewarded(NO_STD, papers.trusted("kl", 0.05, 10), "constant"),
        {"name": "dppo", "divergence": "kl"},
    ),
    option(
        "decoupled_ppo: loglinear",
        hand.loglinear,
        trl.not_in_trl,
        rewarded(GROUP, papers.decoupled(0.05, 0.05, interpolated=True), "token_mean"),
        # Narrow clips: of what is not clipped, the weight times the ratio is policy / sampler wherever the proximal policy lies.
        {"name": "decoupled_ppo", "proximal": "loglinear", "clip_low": 0.05},
        differences=differences.interpolated,
        learner={"minibatches": 1},
    ),
    option(
        "online_dpo: ipo",
        hand.ipo,
        trl.ipo,
        whole.preference(kind="ipo"),
        {"name": "online_dpo", "loss": "ipo"},
        differences=lambda options: differences.pairs(options, rivals=False),
    ),
)

ROWS: tuple[Row | TextRow, ...] = (*OBJECTIVES, *CORRECTIONS, *OPTIONS, *TEXTS, *PREFERENCES, *TAUGHT_TEXTS, *FOREIGN, *OWN)
