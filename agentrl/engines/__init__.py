"""Inference engines: token ids in; token ids, log-probs, weight versions and a finish reason out."""
