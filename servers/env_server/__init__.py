"""An environment behind HTTP: `agentrl serve-env SPEC` on one machine, `http://HOST:PORT` as an environment spec on another.

`protocol` is what both sides say, `sessions` the episodes of the server, `app` its HTTP, `serve` its start and end, `client` the other
side. The environment itself runs in killable workers, as it does in a run.
"""
