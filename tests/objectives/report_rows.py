"""The rows of the report: every objective, its paper's formula, and what each column checks of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import report_choices as choices
import report_claims as claims
import report_credit as credit
import report_differences as differences
import report_enumeration as world
import report_hand as hand
import report_papers as papers
import report_teacher as teacher
import report_trl_rows as trl
import report_whole as whole
from report_papers import Paper

if TYPE_CHECKING:
    from collections.abc import Callable

    from report_cells import Cell
    from report_hand import Hand

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Options, and the paper's loss and gradient under them."""

    options: Options
    paper: Any
    worlds: tuple[world.World, ...] = (world.ON_POLICY, world.OFF_POLICY)
    groups: int = 1
    """Of the steps that are enumerated."""
    texts: int = 2
    """Of each group."""
    differs_from: Options | None = None
    """Options whose expected gradient off policy must be another: what the case is about has an effect there."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the report."""

    title: str
    section: str
    cases: tuple[Case, ...]
    claims: tuple[claims.Claim, ...] = ()
    hand: Callable[[], Hand]
    differences: Callable[[Options], Cell] = differences.straight
    trl: Callable[[], Cell]
    learner: Options = field(default_factory=dict)
    """Options beside the first case's for steps of the real learner."""
    learner_note: str = ""

    @property
    def options(self) -> Options:
        """Those of the first case."""
        return self.cases[0].options


LATE = (world.ON_POLICY, world.LATE)
NO_STD = credit.compared(scale="none")
GROUP = credit.compared()
UNCLIPPED: Options = {"clip_low": 1, "clip_high": 1e9}


def objective(
    name: str,
    paper: Any,
    *cases: Case,
    options: Options | None = None,
    loose: Options | None = None,
    reduction: str = "constant",
    groups: int = 1,
    worlds: tuple[world.World, ...] = (world.ON_POLICY, world.OFF_POLICY),
    **fields: Any,
) -> Row:
    """A row of an objective whose first case is its defaults with `options`.

    `loose` are options that turn its clips and masks off: with them its gradient is claimed to be unbiased, and in the last case they
    must make a difference.
    """
    found = [Case(options={"name": name, **(options or {})}, paper=paper, groups=groups, worlds=worlds), *cases]
    if loose is not None:
        found[-1] = dataclasses.replace(found[-1], differs_from=found[-1].options | loose)
        fields.setdefault("claims", claims.both(name, reduction, where=worlds[-1], **loose))
    return Row(title=name, section="Objectives", cases=tuple(found), hand=getattr(hand, name), trl=getattr(trl, name), **fields)


def taught(name: str, paper: Any, *cases: Case, **fields: Any) -> Row:
    """A row of an objective that learns from a teacher."""
    found = (Case(options={"name": name}, paper=paper), *cases)
    by_hand, by_trl = getattr(teacher, name), getattr(teacher, f"trl_{name}")
    return Row(title=name, section="Objectives", cases=found, hand=by_hand, trl=by_trl, **fields)


def case(name: str, paper: Any, **options: Any) -> Case:
    return Case(options={"name": name, **options}, paper=paper)


def rewarded(advantages: Any, surrogate: Any, reduction: str = "sequence_mean", **more: Any) -> Paper:
    return Paper(advantages=advantages, surrogate=surrogate, reduction=reduction, **more)


OBJECTIVES: tuple[Row, ...] = (
    objective("grpo", rewarded(GROUP, papers.clip(0.2)), loose=UNCLIPPED),
    objective("dr_grpo", rewarded(NO_STD, papers.clip(0.2), "constant"), loose=UNCLIPPED),
    objective(
        "bnpo",
        rewarded(credit.beta_normalized(), papers.clip(0.2)),
        groups=2,
        loose=UNCLIPPED,
        learner={"reward_max": 2.0},
    ),
    objective("dapo", rewarded(GROUP, papers.clip(0.2, 0.28), "token_mean"), loose=UNCLIPPED),
    objective(
        "gspo",
        rewarded(GROUP, papers.whole(3e-4, 4e-4)),
        case("gspo", rewarded(GROUP, papers.whole(0.1, 0.15)), clip_low=0.1, clip_high=0.15),
        loose=UNCLIPPED,
    ),
    objective(
        "gspo_token",
        rewarded(GROUP, papers.whole(3e-4, 4e-4)),
        case("gspo_token", rewarded(GROUP, papers.whole(0.1, 0.15)), clip_low=0.1, clip_high=0.15),
        loose=UNCLIPPED,
    ),
    objective(
        "gmpo",
        rewarded(GROUP, papers.geometric(0.4, 0.4)),
        case("gmpo", rewarded(GROUP, papers.geometric(0.1, 0.2)), clip_low=0.1, clip_high=0.2),
        loose={"clip_low": 1e9, "clip_high": 1e9},
    ),
    objective(
        "luspo",
        rewarded(GROUP, papers.whole(2e-3, 2.5e-3), "sequence_sum"),
        case("luspo", rewarded(GROUP, papers.whole(0.1, 0.15), "sequence_sum"), clip_low=0.1, clip_high=0.15),
        reduction="sequence_sum",
        loose=UNCLIPPED,
    ),
    objective(
        "cispo",
        rewarded(GROUP, papers.weighted(papers.capped(0, 5)), "token_mean"),
        case("cispo", rewarded(GROUP, papers.weighted(papers.capped(0.8, 1.2)), "token_mean"), ratio_min=0.8, ratio_max=1.2),
        loose={"ratio_min": 0, "ratio_max": 1e9},
        differences=differences.with_the_sampler,
    ),
    objective(
        "aipo",
        rewarded(NO_STD, papers.weighted(papers.capped(0, 4)), "token_mean"),
        case("aipo", rewarded(NO_STD, papers.weighted(papers.capped(0, 1.2)), "token_mean"), ratio_max=1.2),
        loose={"ratio_max": 1e9},
        differences=differences.with_the_sampler,
    ),
    objective("sapo", rewarded(GROUP, papers.gate(1.0, 1.05)), claims=claims.both("sapo")[:1]),
    objective(
        "vespo",
        rewarded(NO_STD, papers.weighted(papers.smooth()), "token_mean"),
        claims=claims.both("vespo")[:1],
        differences=differences.with_the_sampler,
    ),
    objective(
        "dppo",
        rewarded(NO_STD, papers.trusted("tv", 0.15, 10), "constant"),
        case("dppo", rewarded(NO_STD, papers.trusted("tv", 0.05, 1.2), "constant"), threshold=0.05, ratio_max=1.2),
        loose={"threshold": 1e9, "ratio_max": None},
    ),
    objective(
        "m2po",
        rewarded(GROUP, papers.plain, "token_mean", mark=choices.second_moment(0.04)),
        case("m2po", rewarded(GROUP, papers.plain, "token_mean", mark=choices.second_moment(0.005)), threshold=0.005),
        loose={"threshold": 1e9},
    ),
    objective(
        "clip_cov",
        rewarded(GROUP, papers.clip_detached(0.2, 0.2), "token_mean", mark=choices.within(0.1, 5)),
        options={"share": 1.0, "cov_min": 0.1},
        loose=UNCLIPPED | {"share": 1e-9},
        differences=differences.without_the_detached,
        learner_note="tokens are drawn by place: all that may be drawn are",
    ),
    objective(
        "kl_cov",
        rewarded(GROUP, papers.held(1.0), "token_mean", mark=choices.highest(0.5)),
        options={"share": 0.5},
        loose={"coefficient": 0},
    ),
    objective(
        "rloo",
        rewarded(credit.compared("siblings", "none", credit.less_kl(0.05)), papers.whole(0.2, 0.2, root=False), "sequence_sum"),
        claims=(
            claims.policy_gradient({"name": "rloo", "beta": 0}, 1.0),
            claims.policy_gradient({"name": "rloo", "beta": 0.3}, 1.0, beta=0.3, says="with KL"),
            claims.unbiased({"name": "rloo", "beta": 0, **UNCLIPPED}),
        ),
    ),
    objective(
        "reinforce",
        rewarded(credit.compared("constant", "none"), papers.weighted(papers.capped(0, 5)), "sequence_sum"),
        case(
            "reinforce",
            rewarded(credit.compared("constant", "none", constant=0.3), papers.weighted(papers.capped(0, 1.2)), "sequence_sum"),
            running_baseline=0.3,
            ratio_max=1.2,
        ),
        claims=(
            claims.policy_gradient({"name": "reinforce", "running_baseline": 0.3}, 1.0),
            claims.single_tokens({"name": "reinforce", "running_baseline": 0.3, "ratio_max": None}, 1.0),
        ),
        differences=differences.with_the_sampler,
    ),
    objective(
        "a2po",
        whole.regression(),
        case("a2po", whole.regression(2.0, 0.5, filtered=False), beta1=2.0, beta2=0.5, filter_all_incorrect=False),
        claims=(claims.optimum(),),
        differences=lambda options: differences.straight({**options, "beta2": 0.5}, rivals=True),
    ),
    objective(
        "ppo",
        rewarded(
            credit.whitened(credit.generalized(1.0, 0.95, beta=0.05)),
            papers.clip(0.2),
            "token_mean",
            critic=(0.1, 0.2),
            returns=credit.generalized(1.0, 0.95, beta=0.05),
        ),
        case(
            "ppo",
            rewarded(credit.generalized(0.9, 0.8), papers.clip(0.2), "token_mean", critic=(0.5, 0.1), returns=credit.generalized(0.9, 0.8)),
            **{"beta": 0, "whiten": False, "discount": 0.9, "gae_lambda": 0.8, "value_coef": 0.5, "clip_value": 0.1},
        ),
        claims=(
            claims.policy_gradient({"name": "ppo", "beta": 0, "whiten": False, "gae_lambda": 1, "normalization": "constant"}, 0.5),
            claims.policy_gradient(
                {"name": "ppo", "beta": 0.3, "whiten": False, "gae_lambda": 1, "normalization": "constant"},
                0.5,
                beta=0.3,
                says="with KL",
            ),
        ),
        learner={"epochs": 1},
        learner_note="one pass: minibatches of several are drawn from the seed",
    ),
    objective(
        "decoupled_ppo",
        rewarded(GROUP, papers.decoupled(0.2, 0.2), "token_mean"),
        Case(
            options={"name": "decoupled_ppo", "weight_max": 1.2},
            paper=rewarded(GROUP, papers.decoupled(0.2, 0.2, most=1.2), "token_mean"),
            worlds=LATE,
        ),
        worlds=LATE,
        loose=UNCLIPPED | {"weight_max": None},
        learner={"minibatches": 1},
        learner_note="one minibatch: of several, which is which is drawn from the seed",
    ),
    objective(
        "online_dpo",
        whole.preference(),
        case("online_dpo", whole.preference(1.0), beta=1.0),
        differences=lambda options: differences.pairs({**options, "beta": 1.0}, rivals=False),
    ),
    objective(
        "nash_md",
        whole.nash(),
        case("nash_md", whole.nash(1.0, 1.2), beta=1.0, ratio_max=1.2),
        claims=claims.nash_gradient(0.1),
        differences=lambda options: differences.with_the_sampler(options, rivals=True),
    ),
    objective(
        "xpo",
        whole.preference(alpha=1e-5),
        case("xpo", whole.preference(1.0, alpha=0.1), beta=1.0, alpha=0.1),
        differences=lambda options: differences.pairs({**options, "beta": 1.0, "alpha": 0.1}, rivals=True),
    ),
    taught(
        "opd",
        teacher.Taught(paper=rewarded(teacher.nothing, papers.weighted(papers.capped(0, 5)), "token_mean")),
        case("opd", teacher.Taught(paper=rewarded(teacher.nothing, papers.plain, "token_mean")), mixture=0.3, temperature=0.7),
        case("opd", teacher.Taught(paper=rewarded(teacher.nothing, papers.plain, "token_mean")), mixture=0.0, estimate="top_k", top_k=1),
        case(
            "opd",
            rewarded(teacher.each(lambda a: a), papers.weighted(papers.capped(0, 1.2)), "token_mean"),
            estimate="sampled",
            ratio_max=1.2,
        ),
        claims=(
            teacher.of_prefixes({"name": "opd"}, world.OFF_POLICY, "dKL at the sampled prefixes"),
            teacher.of_prefixes({"name": "opd", "estimate": "sampled"}, world.ON_POLICY, "sampled: the same on policy"),
        ),
        differences=lambda options: differences.both(options, {**options, "estimate": "sampled", "reward_coef": 0.5}),
    ),
    taught(
        "minillm",
        teacher.Taught(paper=rewarded(teacher.later(1.0, own=False, normalized=True), papers.clip(0.2), "token_mean")),
        case(
            "minillm",
            rewarded(teacher.later(0.5, own=True, normalized=False), papers.clip(0.2), "sequence_sum"),
            gamma=0.5,
            own=True,
            length_normalization=False,
            single_step=False,
            normalization="sequence_sum",
        ),
        claims=(
            teacher.of_completions({"name": "minillm"}, "dKL of completions on policy"),
            teacher.of_completions({"name": "minillm", "own": True, "single_step": False}, "by samples alone too"),
        ),
    ),
    taught(
        "iw_opd",
        rewarded(teacher.importance(0.5), papers.weighted(teacher.plain_weight), "token_mean"),
        case(
            "iw_opd",
            rewarded(teacher.importance(2.0), papers.weighted(teacher.plain_weight), "sequence_mean"),
            gamma=2.0,
            normalization="sequence_mean",
        ),
        claims=(teacher.of_prefixes({"name": "iw_opd", "gamma": 0.0}, world.ON_POLICY, "gamma 0: dKL at the sampled prefixes"),),
    ),
)
