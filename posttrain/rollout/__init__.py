"""Rollouts: engines that sample from the policy."""
