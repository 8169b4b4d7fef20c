"""Servers and sandboxes: vLLM with what training needs, environments and reward models over HTTP, places for untrusted programs."""
