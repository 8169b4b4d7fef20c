"""A run file's sections of an offline run: its rows, its evaluations, and where its model is pushed to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from agentrl.config_base import Config, NonNegative, Positive, Seconds


class DataConfig(Config):
    """How the rows of a dataset become tokens, in an offline run."""

    max_length: Positive | None = None
    """Most tokens of a text; by default what the model's positions allow."""
    long_rows: Literal["error", "drop", "keep_start", "keep_end"] = "error"
    """What becomes of a row with a longer text: `keep_start` cuts its end off, `keep_end` the start of its prompt. Each is counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be trained ends the run before it begins, or is left out and counted."""
    completion_only: bool | None = None
    """Train the completion's tokens alone; null does where rows have a prompt and a completion."""
    assistant_only: bool = False
    """Train the tokens of the assistant's turns alone, whatever the template."""
    packing: Literal["none", "bfd", "bfd_split", "wrapped"] = "none"
    """Fill sequences of `max_length` tokens with several rows: best-fit decreasing, the same with long rows split, or all rows
    in one stream that is cut wherever a sequence is full."""
    chat_template: str | None = None
    """A file with the chat template to use in place of the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the template; a row's own `chat_template_kwargs` go over them."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns to rename, theirs to ours: `{question: prompt}`; an empty name leaves a column out."""
    step_separator: str = "\n"
    """Behind each step of a stepwise row; the step's label belongs to its last token."""
    convert: Literal["language_modeling", "prompt_only", "prompt_completion", "preference", "unpaired_preference", "stepwise"] | None = None
    """Convert rows to this schema, which an objective does unasked only where nothing is lost: a preference to its chosen text, say."""
    streaming: bool = False
    """Read rows as they are needed; `steps` then says how long the run is."""
    shuffle: bool = True
    """Draw rows in an order of the seed's; false takes them as they stand."""
    eval_rows: NonNegative = 0
    """Rows held out for evaluation, where no `eval_dataset` is named."""


class EvaluationConfig(Config):
    """Evaluation while an offline run trains, on rows that are not trained."""

    every: Positive | None = None
    """Optimizer steps between two evaluations; null evaluates at the end alone."""
    metric: str = "eval_loss"
    """What tells a better model from a worse one."""
    higher_is_better: bool | None = None
    """Null goes by the metric's name: lower for a loss or a KL, higher for an accuracy, a reward or a margin."""
    patience: Positive | None = None
    """Stop after so many evaluations in a row without a better one; null goes on."""
    keep_best: bool = False
    """The final model is that of the best evaluation, and not of the last step."""
    samples: NonNegative = 0
    """Prompts that the model answers at each evaluation, for people to read."""


class HubConfig(Config):
    """Where the model is pushed to; a push that fails is told, and the run goes on."""

    repo: str
    """`owner/name` on the Hugging Face Hub."""
    private: bool = True
    """A new repository is private, and an existing public one is refused."""
    token_env: str = "HF_TOKEN"
    """Environment variable that holds the token."""
    every: Positive | None = None
    """Optimizer steps between two pushes while the run goes on; null pushes the final model alone."""
    timeout_s: Seconds = 3600.0
    """Longest wait for the Hub at the end."""


class DatasetShareConfig(Config):
    """One of several datasets."""

    dataset: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the rows drawn, in proportion to the others'."""
