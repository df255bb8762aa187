"""The fixture of attribution methods."""

from __future__ import annotations

import pytest

from attribution_methods import METHODS


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]
