"""The ``advcam`` command."""
