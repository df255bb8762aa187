"""Weakly supervised object localization."""
