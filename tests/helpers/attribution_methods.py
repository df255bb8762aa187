"""All attribution methods, and models that count or fail."""

import gc
import warnings

from torch import Tensor, nn

from advcam_attr import CAM, AdvCAM, EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

METHODS = {
    "CAM": CAM,
    "GradCAM": GradCAM,
    "GradCAMPlusPlus": GradCAMPlusPlus,
    "LayerCAM": LayerCAM,
    "HiResCAM": HiResCAM,
    "XGradCAM": XGradCAM,
    "EigenCAM": EigenCAM,
    "AdvCAM": lambda model, **options: AdvCAM(model, **{"steps": 3, **options}),
    "AdvCAM on Grad-CAM": lambda model, **options: AdvCAM(model, **{"steps": 3, "base": "grad_cam", **options}),
    "AdvCAM official": lambda model, **options: AdvCAM(
        model, **{"steps": 3, "recipe": "official", "scales": 1.0, **options}
    ),
}


class Failing(nn.Module):
    """A net that raises ``error`` at its n-th forward."""

    def __init__(self, net: nn.Module, error: type[BaseException], at: int) -> None:
        super().__init__()
        self.net, self.error, self.left = net, error, at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error("planned")
        return self.net(x)


def tensors_alive() -> list[Tensor]:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [o for o in gc.get_objects() if type(o) is Tensor]


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


class Counting(nn.Module):
    """Counts its forwards."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.count = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.net(x)
