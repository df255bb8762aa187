"""Localization maps in; what is cut from them, or grown out of them, out."""
