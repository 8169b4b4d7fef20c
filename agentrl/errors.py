"""Every error that agentrl raises on purpose, and whose fault each one is.

AgentRLError
 +-- ConfigError (ValueError)      the run file, the command line or a spec: the user's to mend
 +-- EnvironmentFailure            code of an environment or a reward raised, hung or lied about its types
 +-- SamplerUnavailable            the inference engine died, refused or did not answer in time
 |    +-- RequestRefused           it refused one request for good, and may take others
 +-- PublishError                  weights did not arrive as they were sent
 +-- PushFailed                    the Hugging Face Hub did not take a model, and may later
 +-- WorkerDied                    a process of the run ended before the run did
 +-- LearnerDiverged               a loss, gradient or weight stopped being finite
 +-- RunCannotLearn                the run is alive but nothing in it can be learned from
 +-- CheckpointError               a checkpoint could not be written or read back
"""

from __future__ import annotations


class AgentRLError(Exception):
    """Base of all errors that agentrl raises on purpose."""


class ConfigError(AgentRLError, ValueError):
    """A run file, flag or spec is wrong; the message names key, value and cure."""


class EnvironmentFailure(AgentRLError):
    """Code of an environment or a reward failed; becomes a counted, unscorable rollout."""


class SamplerUnavailable(AgentRLError):
    """The inference engine died, refused the request or missed its deadline."""


class RequestRefused(SamplerUnavailable):
    """The inference engine refuses this request and would refuse it again; ends the rollout, not the run."""


class PublishError(AgentRLError):
    """An engine did not confirm the weights that were sent to it."""


class PushFailed(AgentRLError):
    """The Hugging Face Hub did not take a model; the model is where it was, and can be pushed again."""


class WorkerDied(AgentRLError):
    """A process that the run depends on ended before the run did."""


class LearnerDiverged(AgentRLError):
    """A loss, a gradient or a weight is not finite."""


class RunCannotLearn(AgentRLError):
    """Everything works and nothing can be learned: no updates, or too many unscorable rollouts."""


class CheckpointError(AgentRLError):
    """A checkpoint could not be written whole, or does not read back."""
