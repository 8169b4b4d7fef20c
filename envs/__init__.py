"""Environments that come with agentrl, each registered under its module's name.

`arithmetic` (one turn, a verifier), `countdown` (one turn, a search), `lookup` (several turns, tools).
"""
