"""What a forward and a backward of DeepLab cost: the ratio to a plain torchvision ResNet-101 of equal arithmetic.

The plain net is torchvision's ResNet-101 with its own dilation, in which the dilated stages cost as much as here, four
3 × 3 classifiers, and norms in eval mode. Both see the same images; with ``--scales``, both see them at three scales,
and the plain one has plain cross-entropies of its three outputs, without fusion and balance.

    python benchmarks/deeplab_step.py --batch 1 --rounds 2      # CPU
    python benchmarks/deeplab_step.py --device cuda             # batch 10, as in training

Ratios come from interleaved rounds in one run (the median of each round's ratio). On the CPU the process's own time is
measured, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_attr.networks.backbone import Backbone
from advcam_attr.networks.deeplab import DeepLab, MultiScale, deeplab
from advcam_attr.networks.resnet101 import RESNET101
from advcam_attr.training.losses.segmentation import balanced_cross_entropy, resized_labels, summed_over_grids

SCALES = (0.5, 0.75)


def plain_net(labels: int = 21) -> nn.Module:
    """torchvision's dilated ResNet-101 and four classifiers, as anyone would put them together."""
    from torchvision.models import resnet101

    net = resnet101(replace_stride_with_dilation=[False, True, True])
    body = nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
    )  # fmt: skip
    heads = nn.ModuleList(nn.Conv2d(2048, labels, 3, padding=rate, dilation=rate) for rate in (6, 12, 18, 24))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = body, heads

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x)
            return sum(head(features) for head in self.heads)

    made = Plain().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return made


def plain_step(net: nn.Module, x: Tensor, labels: Tensor, scales: tuple[float, ...]) -> Callable[[], None]:
    """A forward and a backward to all weights."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        sizes = [x, *(F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False) for s in scales)]
        outputs = [net(one) for one in sizes]
        sum(F.cross_entropy(o, resized_labels(labels, o.shape[2:]), ignore_index=255) for o in outputs).backward()

    return step


def own_step(net: DeepLab, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """The same of this package's net, as it is trained."""
    many, loss = MultiScale(net).train(), summed_over_grids(balanced_cross_entropy)

    def step() -> None:
        many.zero_grad(set_to_none=True)
        loss(many(x), labels).backward()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scales", action="store_true", help="at three scales, as in training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scales = SCALES if options.scales else ()
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, options.crop, options.crop, device=options.device)
    labels = torch.randint(0, 21, (options.batch, options.crop, options.crop), device=options.device)
    labels = labels.to(torch.uint8)
    own = deeplab(Backbone(RESNET101, random_weights=True), scales=scales).to(options.device)
    plain = plain_net().to(options.device)
    steps = {"plain": plain_step(plain, x, labels, scales), "own": own_step(own, x, labels)}
    for step in steps.values():
        step()
    rounds = [{name: seconds(step, options.device) for name, step in steps.items()} for _ in range(options.rounds)]
    ratios = [one["own"] / one["plain"] for one in rounds]
    shown = ", ".join(f"{name} {statistics.median(one[name] for one in rounds):.2f} s" for name in steps)
    print(f"{options.device}, batch {options.batch} at {options.crop}, {1 + len(scales)} scales: {shown}")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
