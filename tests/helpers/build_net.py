"""Nets from keyword arguments of their backbone and of their factory in one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from advcam_attr.networks.backbone import Backbone

FIELDS = {field.name for field in dataclasses.fields(Backbone)}


def build_net(factory: Callable[..., Any], name: str, *args: Any, random_weights: bool = True, **options: Any) -> Any:
    """``factory(Backbone(name, ...), *args, ...)``, each option where it belongs; random weights by default."""
    fields = {key: value for key, value in options.items() if key in FIELDS}
    rest = {key: value for key, value in options.items() if key not in FIELDS}
    return factory(Backbone(name, random_weights=random_weights, **fields), *args, **rest)
