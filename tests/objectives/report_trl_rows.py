"""For each row of the report, what TRL says of it: which stored batches are its own, or why there are none."""

from __future__ import annotations

import dataclasses

import report_credit as credit
import report_papers as papers
import report_whole as whole
from report_cells import Cell, reason, verdict
from report_papers import Paper
from report_trl import (
    Options,
    advantages,
    batches,
    by_loss_type,
    differs,
    entries,
    grouped,
    loss_gaps,
    losses,
    merged,
    named,
    paired,
    paper_gaps,
    plays,
    ppo_gaps,
    regression_gaps,
    stored,
)

SEQUENCE = {"importance_sampling_level": "sequence"}
ALONE = {"use_vllm": None, "beta": None, "top_entropy_quantile": None, "entropy_coef": None, "mask_truncated_completions": None}


def not_in_trl() -> Cell:
    return reason("not in TRL")


aipo = m2po = clip_cov = kl_cov = reinforce = decoupled_ppo = not_in_trl


def dppo() -> Cell:
    return reason("not in TRL 1.16; no older values stored")


def grpo() -> Cell:
    return merged(
        losses(entries("losses", trainer="grpo", loss_type="grpo", beta=None, delta=None), by_loss_type),
        advantages(entries("advantages", trainer="grpo", scale_rewards="group"), named("grpo")),
    )


def dr_grpo() -> Cell:
    return merged(
        losses(entries("losses", loss_type="dr_grpo"), named("dr_grpo")),
        advantages(entries("advantages", trainer="grpo", scale_rewards="none"), named("dr_grpo")),
    )


def bnpo() -> Cell:
    rows = [
        dataclasses.replace(play, reward=reward) for play, reward in zip(plays(), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0], strict=True)
    ]
    paper = Paper(advantages=credit.beta_normalized(), surrogate=papers.clip(0.2))
    same_name = losses(entries("losses", loss_type="bnpo"), by_loss_type)
    note = "its bnpo is GRPO with a token mean, which ours gives too"
    return differs(note, paper_gaps({"name": "bnpo"}, paper, grouped(rows), given=False), dataclasses.replace(same_name, note=""))


def dapo() -> Cell:
    more = [
        entry
        for entry in entries("more_losses", kind="grpo", loss_type="dapo", off_policy_mask_threshold=None, **ALONE)
        if "delta" in entry["case"]
    ]
    return losses(entries("losses", loss_type="dapo") + more, named("dapo"))


def gspo() -> Cell:
    plain = entries("more_losses", kind="grpo", loss_type="grpo", **SEQUENCE, **{**ALONE, "beta": None})
    kl = entries("more_losses", kind="grpo", loss_type="grpo", use_bias_correction_kl=False, **SEQUENCE)
    return losses(plain + kl, named("gspo"))


def gspo_token() -> Cell:
    found = entries("removed", kind="gspo_token", loss_type=None)
    means = entries("removed", kind="gspo_token", loss_type="dapo")
    # Its KL is the plain one.
    return merged(
        losses(found, named("gspo_token", kl_correction=False)),
        dataclasses.replace(losses(means, named("gspo_token", normalization="token_mean")), note="TRL 1.12"),
    )


def gmpo() -> Cell:
    return losses(entries("more_losses", kind="gmpo", top_entropy_quantile=None), named("gmpo", kl_correction=False))


def luspo() -> Cell:
    return losses(entries("more_losses", loss_type="luspo", beta=None), named("luspo"))


def cispo() -> Cell:
    def options(case: Options) -> Options:
        return {"name": "cispo", "ratio_max": case["epsilon_high"], "beta": case.get("beta", 0.0)}

    return losses(entries("more_losses", loss_type="cispo", use_vllm=None), options)


def sapo() -> Cell:
    def options(case: Options) -> Options:
        return {"name": "sapo"} | {key.removeprefix("sapo_"): value for key, value in case.items() if key.startswith("sapo_")}

    return losses(entries("more_losses", loss_type="sapo", use_vllm=None, importance_sampling_level=None), options)


def vespo() -> Cell:
    def options(case: Options) -> Options:
        return {"name": "vespo"} | {key.removeprefix("vespo_"): value for key, value in case.items() if key.startswith("vespo_")}

    return losses(entries("more_losses", loss_type="vespo", use_vllm=None), options)


def rloo() -> Cell:
    found = entries("losses", trainer="rloo")
    both = merged(losses(found, named("rloo")), advantages(entries("advantages", trainer="rloo"), named("rloo")))
    return dataclasses.replace(both, note=f"{both.note}; its clip is not the paper's")


def a2po() -> Cell:
    found = entries("more_losses", kind="a2po")
    return verdict([error for entry in found for error in regression_gaps(entry)], note=f"{batches(found)}, V* too")


def ppo() -> Cell:
    found = entries("removed", kind="ppo", whiten_rewards=None)
    note = f"{batches(found)} of TRL 1.12, critic and advantages too"
    return verdict([error for entry in found for error in ppo_gaps(entry)], note=note)


def _pair_cell(name: str, section: str, loss: str) -> Cell:
    """Online DPO and XPO; where rewards are tied TRL trains the pair, and ours leaves it out."""
    gaps: list[float] = []
    tied: list[float] = []
    for entry in entries(section, kind=name, loss_type=loss):
        case = entry["case"]
        options: Options = {"name": name, "beta": case["beta"], "loss": loss} | ({"alpha": case["alpha"]} if name == "xpo" else {})
        step = paired(case["rewards"], rivals=name == "xpo")
        if len(set(case["rewards"])) == len(case["rewards"]) - 1:
            gaps += loss_gaps(entry, options, step, given=False)
        else:
            tied += paper_gaps(options, whole.preference(case["beta"], loss, case.get("alpha", 0.0)), step, given=False)
    cell = verdict(gaps, note=f"TRL {entries(section, kind=name)[0].get('trl', stored()['trl'])}")
    return merged(cell, verdict(tied, note="differs: it trains ties")) if tied else cell


def online_dpo() -> Cell:
    return _pair_cell("online_dpo", "more_losses", "sigmoid")


def ipo() -> Cell:
    return _pair_cell("online_dpo", "more_losses", "ipo")


def xpo() -> Cell:
    return merged(_pair_cell("xpo", "removed", "sigmoid"), dataclasses.replace(_pair_cell("xpo", "removed", "ipo"), note=""))


def nash_md() -> Cell:
    gaps: list[float] = []
    for entry in entries("removed", kind="nash_md"):
        step = paired(entry["case"]["rewards"], on_policy=True, rivals=True)
        gaps += paper_gaps({"name": "nash_md", "beta": entry["case"]["beta"]}, whole.nash(entry["case"]["beta"]), step, given=False)
    return differs("its KL is token times token, not of whole rollouts", gaps)
