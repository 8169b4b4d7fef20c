"""Datasets of offline runs: where rows come from, which schema they have, how they become one that an objective takes.

Rows are opened as they were written (`sources.open_rows`, `streams.open_stream`), several datasets put in an order (`mixtures`), some held
out (`splits`). `schemas` says which schema a row has and what is wrong with it, `convert` makes of it what an objective learns from.
"""
