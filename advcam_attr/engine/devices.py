"""The name of a device in; the device of this process, or a refusal, out."""

from __future__ import annotations

import torch

from advcam_attr.types import AdvCAMError


def choose_device(name: str = "auto", local: int = 0) -> torch.device:
    """A device that can be used.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or another that torch has. By ``"auto"`` a GPU if there
            is one, else the CPU.
        local: the number of this process on its machine, which chooses among its GPUs where the name does not.

    Raises:
        AdvCAMError: a device that cannot be used here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AdvCAMError(f"device {name!r} cannot be used here; cpu always can") from error
    return torch.device(name)
