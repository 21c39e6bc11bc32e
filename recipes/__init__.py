"""Recipes: complete YAML files, each opening with its own launch command."""
