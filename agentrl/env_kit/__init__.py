"""The parts of `agentrl env test`: a scripted model, the checks, and how their findings are shown. `agentrl.env_test` runs them."""
