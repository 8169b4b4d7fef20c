"""The written forms of tool calls, one module a kind; `agentrl.rollout.toolcalls` reads turns with them."""
