"""Rewards: text, boxes and references in, a `Score` out. Imports no torch."""

from .score import BadReferenceError, Completion, Reward, Score

__all__ = ["BadReferenceError", "Completion", "Reward", "Score"]
