"""The base class of map attributions, and the checks of their inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from advcam_attr.heads import Activations, Head, HeadView, undisturbed, view
from advcam_attr.heads.cells import whole_cells
from advcam_attr.registry import suggests_options
from advcam_attr.types import AdvCAMError

Output = Literal["image", "native", "input"]
_OUTPUTS = ("image", "native", "input")


class MapAttribution(GradientAttribution):
    """A map from one forward and the derivative of one logit to the features.

    Subclasses implement `maps`. The model's mode, gradients, hooks and tensors are preserved; the result is detached,
    float32 and contiguous; images are independent.

    Args:
        model: a classifier that takes ``(N, C, H, W)`` and returns logits ``(N, K)``.
        layer: the module, or its name, whose output is mapped; None finds the tensor that is pooled, or the last grid.
    """

    #: Whether the map needs class weights, that is, a head which pools by a mean.
    needs_class_weights: bool = False

    @suggests_options
    def __init__(self, model: nn.Module, layer: str | nn.Module | None = None) -> None:
        super().__init__(model)
        self.view: HeadView = view(model, layer)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.view.model).__name__}, layer={self.view.layer!r})"

    @staticmethod
    def maps(acts: Activations, target: Tensor) -> Tensor:
        """Return the map of one class ``(B,)`` per image, ``(B, h, w)``, on the autograd graph through the features."""
        raise NotImplementedError

    @log_usage()
    @suggests_options
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        internal_batch_size: int | None = None,
        output: Output = "image",
        normalize: bool = False,
    ) -> Tensor | tuple[Tensor]:
        """Map each image's class.

        Args:
            inputs: normalised images, ``(N, C, H, W)``, or a 1-tuple of them.
            target: the class of each image: an int for all, or N of them (list or tensor); negative ones count from
                the end.
            additional_forward_args: further arguments of the model's forward; tensors with N entries are indexed with
                the images.
            internal_batch_size: the most images in one forward; the result is the same.
            output: ``"image"``: ``(N, 1, H, W)``, resized bilinearly; ``"native"``: ``(N, 1, h, w)``, the map itself;
                ``"input"``: ``(N, C, H, W)``, the map divided equally among the channels.
            normalize: drop negative values and divide by each map's peak.

        Returns:
            The maps, in a 1-tuple if the inputs were.

        Raises:
            TypeError, AdvCAMError (a ValueError): inputs, target or an option that cannot be used.
        """
        images, boxed = check_images(inputs)
        options = check_output(output, internal_batch_size)
        indices = check_targets(target, len(images))
        extra = as_arguments(additional_forward_args)
        parts = []
        with undisturbed(self.view.model):
            images = images.clone() if images.is_inference() else images
            head = self._head(images, extra)
            classes = in_range(indices, head.classes, images.device)
            for chunk in torch.arange(len(images)).split(internal_batch_size or len(images)):
                x = images[chunk].requires_grad_(not self.needs_class_weights)
                with torch.set_grad_enabled(x.requires_grad):
                    acts = self.view(x, *select_arguments(extra, chunk, len(images)))
                parts.append(self.maps(acts, classes[chunk]).detach())
        maps = finish(torch.cat(parts), images, options, normalize)
        return (maps,) if boxed else maps

    def _head(self, images: Tensor, extra: Sequence[Any]) -> Head:
        first = select_arguments(extra, torch.zeros(1, dtype=torch.long), len(images))
        inspect = self.view.require if self.needs_class_weights else self.view.inspect
        return inspect(images[:1], *first)

    def compute_convergence_delta(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available: a map over a feature grid does not sum to a difference of outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no convergence delta")

    def attribute_future(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available."""
        raise NotImplementedError(f"{type(self).__name__} has no attribute_future; use attribute")

    @classmethod
    def get_name(cls) -> str:
        """Return the method's name."""
        return cls.__name__


def as_arguments(arguments: Any) -> tuple[Any, ...]:
    """Return Captum's ``additional_forward_args`` as a tuple."""
    if arguments is None:
        return ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def select_arguments(arguments: Sequence[Any], indices: Tensor, count: int) -> list[Any]:
    """Index those of the further arguments that are tensors with one entry per image."""
    return [a[indices] if isinstance(a, Tensor) and a.ndim > 0 and len(a) == count else a for a in arguments]


def check_output(output: str, internal_batch_size: int | None) -> Output:
    """Return ``output`` if it is one of the three, and the batch size is at least 1."""
    if output not in _OUTPUTS:
        raise AdvCAMError(f'output must be "image", "native" or "input", got {output!r}')
    if internal_batch_size is not None and internal_batch_size < 1:
        raise AdvCAMError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
    return output  # type: ignore[return-value]


def finish(maps: Tensor, images: Tensor, output: Output, normalize: bool) -> Tensor:
    """Convert maps ``(N, h, w)`` to the shape of ``output``."""
    if normalize:
        maps = maps.relu()
        maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    maps = maps[:, None]
    if output != "native":
        maps = resize(maps, (images.shape[2], images.shape[3]))
    if output == "input":
        maps = (maps / images.shape[1]).expand(-1, images.shape[1], -1, -1)
    return maps.contiguous()


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``(N, 1, h, w)`` bilinearly to an image of ``size``.

    Where the grid is the image's size divided by a power of two, rounded up or down, the map is resized to whole cells
    (`advcam_attr.heads.cells.whole_cells`), so that a cell stays over the pixels it comes from. What is beyond the
    image is cropped at the bottom and right, and pixels without a cell have the nearest cell's value.
    """
    (height, width), (h, w) = size, maps.shape[2:]
    down, right = whole_cells((h, w), size).stride
    laid = F.interpolate(maps, (round(h * down), round(w * right)), mode="bilinear", align_corners=False)
    below, beside = max(0, height - laid.shape[2]), max(0, width - laid.shape[3])
    laid = F.pad(laid, (0, beside, 0, below), mode="replicate") if below or beside else laid
    return laid if laid.shape[2:] == size else laid[..., :height, :width]  # a view would keep its base alive


def to_size(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize maps ``(R, h', w')`` of another scale to a grid ``(h, w)``, as `resize` does."""
    return maps if maps.shape[1:] == grid else resize(maps[:, None], grid)[:, 0]


MapFunction = Callable[[Activations, Tensor], Tensor]


_TARGETS = "an int, a list of N ints, or an int tensor of shape () or (N,)"


def check_images(inputs: Any) -> tuple[Tensor, bool]:
    """Return the images ``(N, C, H, W)``, detached, float32 (float64 stays), and whether they came in a tuple."""
    boxed = isinstance(inputs, tuple)
    if boxed:
        if len(inputs) != 1:
            raise AdvCAMError(
                f"inputs must be one tensor (N, C, H, W), got a tuple of {len(inputs)}: "
                "pass further ones in additional_forward_args"
            )
        (inputs,) = inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor (N, C, H, W), got {type(inputs).__name__}")
    if inputs.ndim == 3:
        raise AdvCAMError(f"inputs must be (N, C, H, W), got {tuple(inputs.shape)}: add a dimension with inputs[None]")
    if inputs.ndim != 4:
        raise AdvCAMError(f"inputs must be (N, C, H, W), got {tuple(inputs.shape)}")
    if not inputs.is_floating_point():
        raise AdvCAMError(f"inputs must be floating and normalised, got {inputs.dtype}: convert them as for the model")
    if inputs.numel() == 0:
        raise AdvCAMError(f"inputs are empty, {tuple(inputs.shape)}: pass at least one image")
    images = inputs.detach()
    if not bool(images.isfinite().all()):
        raise AdvCAMError("inputs have NaN or infinite values: look at how the images are read and normalised")
    return images if images.dtype == torch.float64 else images.float(), boxed


def check_targets(target: Any, count: int) -> list[int]:
    """Return one class index per image; ``target`` as Captum accepts it, NumPy ints and lists of 1-tuples too."""
    if target is None:
        raise AdvCAMError(f"target is missing: pass {_TARGETS}, e.g. model(inputs).argmax(1)")
    if isinstance(target, (Tensor, np.ndarray)):
        kind = target.dtype
        floating = target.is_floating_point() if isinstance(target, Tensor) else target.dtype.kind not in "iu"
        if floating or kind in (torch.bool, np.dtype(bool)):
            raise TypeError(f"target must be {_TARGETS}, got a tensor of {kind}")
        if target.ndim > 1:
            raise AdvCAMError(f"target must be {_TARGETS}, got shape {tuple(target.shape)} (one-hot? use .argmax(1))")
        indices = [int(t) for t in target.reshape(-1).tolist()]
        single = target.ndim == 0 or len(indices) == 1
    elif isinstance(target, (list, tuple)):
        indices = [_index(item) for item in target]
        single = len(indices) == 1
    else:
        indices, single = [_index(target)], True
    if single and len(indices) == 1:
        return indices * count
    if len(indices) != count:
        raise AdvCAMError(f"target has {len(indices)} classes for {count} images: pass one for each, or one for all")
    return indices


def _index(value: Any) -> int:
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool:
        return int(value)
    if isinstance(value, (bool, np.bool_, Tensor)):
        raise TypeError(f"target must be {_TARGETS}, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"target must be {_TARGETS}, got {type(value).__name__} {value!r}") from None


def in_range(indices: Sequence[int], classes: int, device: torch.device) -> Tensor:
    """Return class indices as a tensor ``(N,)``, negative ones counted from the end."""
    for index in indices:
        if not -classes <= index < classes:
            raise AdvCAMError(f"target {index} is not a class of the model: it has {classes}, 0 to {classes - 1}")
    return torch.tensor([index % classes for index in indices], device=device)


def check_image_of(image_of: Any, count: int) -> None:
    """Raise unless ``image_of`` is the index of one of ``count`` images for each sample, ``(R,)``."""
    if not isinstance(image_of, Tensor) or image_of.dtype != torch.long or image_of.ndim != 1:
        got = f"{image_of.dtype} {tuple(image_of.shape)}" if isinstance(image_of, Tensor) else type(image_of).__name__
        raise TypeError(f"image_of must be an int64 tensor (R,), the image of each sample, got {got}")
    if len(image_of) == 0 or int(image_of.min()) < 0 or int(image_of.max()) >= count:
        raise AdvCAMError(f"image_of must hold indices of the {count} images, 0 to {count - 1}, at least one")


def check_background(saliency: Any, images: Tensor) -> Tensor | None:
    """Return the background of a saliency map of the images' size, ``(N, H, W)``, bool.

    The map is the foreground, bool or in [0, 1] (at most 0.5 is background): ``(H, W)``, ``(1 or N, H, W)`` or
    ``(1 or N, 1, H, W)``.
    """
    if saliency is None:
        return None
    if not isinstance(saliency, Tensor):
        raise TypeError(f"saliency must be a tensor, got {type(saliency).__name__}")
    maps = saliency.detach()
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    maps = maps[None] if maps.ndim == 2 else maps
    size, (count, _, height, width) = tuple(maps.shape), images.shape
    if maps.ndim != 3 or size[0] not in (1, count) or size[1:] != (height, width):
        raise AdvCAMError(
            f"saliency must be (1 or {count}, {height}, {width}) as the images are, got {tuple(saliency.shape)}"
        )
    if maps.dtype != torch.bool:
        if not maps.is_floating_point() or not bool(((maps >= 0) & (maps <= 1)).all()):
            raise AdvCAMError("saliency must be bool, or floating in [0, 1]: divide 8-bit maps by 255")
        maps = maps > 0.5
    return ~maps.expand(count, -1, -1).to(images.device)
