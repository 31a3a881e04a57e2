"""Drawn people: synthetic datasets that need no download."""
