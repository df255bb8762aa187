"""Which models named by configurations and files may be loaded: timm's and torchvision's, and those that are trusted.

A factory, ``package.module:factory``, runs code, and ``timm/hf-hub:...`` and ``timm/local-dir:...`` fetch a model from
elsewhere. Such a name is loaded where it was given by the user's own code or command line. In a configuration, the
record of a run folder or the metadata of a weights file it must be trusted by name: ``--trust-factory NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from advcam_attr.types import AdvCAMError

_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted_factories", default=frozenset())


class UntrustedFactoryError(AdvCAMError):
    """A configuration or file names a model that is neither timm's nor torchvision's, nor trusted."""


@contextmanager
def trusted_factories(*names: str) -> Iterator[None]:
    """Trust these names in a block, besides those of a surrounding one.

    Example:
        >>> with trusted_factories("my_nets:make"):
        ...     require_trusted("my_nets:make")
    """
    token = _TRUSTED.set(_TRUSTED.get() | set(names))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def require_trusted(name: str) -> None:
    """Raise `UntrustedFactoryError` for a name that needs trust and has none."""
    if ":" in name and name not in _TRUSTED.get():
        raise UntrustedFactoryError(
            f"{name!r} is named by a configuration or file, and loading it may run code: if you trust it, add "
            f"--trust-factory {name} (in Python: with trusted_factories({name!r}))"
        )
