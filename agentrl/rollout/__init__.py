"""Playing episodes: the episode loop, rendering and tool calls under trio, and the worker processes in which environments live."""
