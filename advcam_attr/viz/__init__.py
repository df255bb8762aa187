"""Overlays and axes for figures."""
