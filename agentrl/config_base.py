"""What every section of a run file is made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every section: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def urls(value: list[str]) -> list[str]:
    """Addresses of servers in one form; raises `ValueError` for what is none."""
    for url in value:
        if not re.fullmatch(r"https?://[^\s/]+(:\d+)?/?", url):
            raise ValueError(f"got {url!r}; a server is http://HOST:PORT, without a path such as /v1")
    if len({url.rstrip("/") for url in value}) < len(value):
        raise ValueError("a server is named twice")
    return [url.rstrip("/") for url in value]
