"""AdvCAM as a Captum attribution: images and classes in, the maps of a climb, summed, out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn
from tqdm.auto import tqdm

from advcam_attr.attr.adapters import CaptumBase
from advcam_attr.attr.attribution import (
    MapAttribution,
    Output,
    as_arguments,
    check_background,
    check_images,
    check_output,
    check_targets,
    finish,
    in_range,
    resize,
    take_rows,
)
from advcam_attr.attr.cam import CAM
from advcam_attr.attr.grad_cam import GradCAM
from advcam_attr.attr.grad_cam_plus_plus import GradCAMPlusPlus
from advcam_attr.attr.layer_cam import LayerCAM
from advcam_attr.climbing import recipes
from advcam_attr.climbing.loop import climb, to_grid, totals
from advcam_attr.climbing.state import Base
from advcam_attr.heads import HeadView, undisturbed
from advcam_attr.registry import lookup, require_callable
from advcam_attr.types import AdvCAMError, ClimbStep

BASES: dict[str, type[MapAttribution]] = {
    "cam": CAM,
    "grad_cam": GradCAM,
    "grad_cam++": GradCAMPlusPlus,
    "layer_cam": LayerCAM,
}

#: Options of AdvCAM's constructor that belong to the machine, not to the recipe.
_EXECUTION = ("autocast", "channels_last")


class AdvCAM(MapAttribution):
    """AdvCAM (Lee et al., TPAMI 2022): CAMs of an image climbed up its class score, summed over the steps.

    Each step moves the image up the objective (the target's logit, less that of other classes, less a penalty for
    changing what is lit already; Eqs. 6 and 7) and the maps of all steps are summed (Eq. 4). The model needs no
    retraining. Zero steps give the base attribution.

    Deviations from the released code are those of the recipe; ``recipe="official"`` has none but the resizing of the
    image to other scales, which happens on the tensor (bicubic, antialiased) and not on the 8-bit picture.

    Args:
        model: a classifier that takes ``(N, C, H, W)`` and returns logits ``(N, K)``.
        layer: the module, or its name, whose output is mapped; None finds it.
        base: ``"cam"``, ``"grad_cam"``, ``"grad_cam++"``, ``"layer_cam"``; one of their classes or instances; a Captum
            attribution (class or instance); or a callable ``(activations, target) -> (B, h, w)``. A callable may have
            a method ``accumulated`` of the same form, whose maps are summed in place of its own (those are climbed and
            restricted), and ``taps``, names of modules whose outputs it finds in ``activations.taps``.
        recipe: ``"auto"``, ``"official"``, ``"paper"`` or a `advcam_attr.climbing.recipes.Recipe`.
        **overrides: parts of the recipe by name, e.g. ``steps=20, flip=True, scales=(0.5, 1.0)``; and ``autocast``
            (True, or a dtype) and ``channels_last`` (True lays the images out so; move the model there yourself).

    Example:
        >>> import torch
        >>> from advcam_attr import AdvCAM
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> AdvCAM(net, steps=3).attribute(torch.rand(2, 3, 8, 8), target=[0, 1]).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        base: str | Base | MapAttribution | Attribution | type[Attribution] = "cam",
        recipe: str | recipes.Recipe = "auto",
        **overrides: Any,
    ) -> None:
        super().__init__(model, layer)
        self.view = HeadView(self.view.model, layer, getattr(base, "taps", ()))
        execution = {name: overrides.pop(name) for name in _EXECUTION if name in overrides}
        self.recipe = recipes.get(recipe, **overrides)
        self.autocast = _autocast_dtype(execution.get("autocast", False))
        self.channels_last = bool(execution.get("channels_last", False))
        self.base, self.needs_class_weights = as_base(base, self.view)

    def __repr__(self) -> str:
        return f"AdvCAM({type(self.view.model).__name__}, base={_base_name(self.base)}, recipe={self.recipe.name!r})"

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        steps: int | None = None,
        saliency: Tensor | None = None,
        internal_batch_size: int | None = None,
        output: Output = "image",
        normalize: bool = False,
        show_progress: bool = False,
        on_step: Callable[[ClimbStep], None] | None = None,
    ) -> Tensor | tuple[Tensor]:
        """Climb each image's class and sum the maps.

        Args:
            inputs: images as the model takes them, ``(N, C, H, W)``, or a 1-tuple of them.
            target: the class of each image: an int for all, or N of them (list or tensor); negative ones count from
                the end.
            additional_forward_args: further arguments of the model's forward; tensors with N entries go along with
                the images.
            steps: in place of the recipe's.
            saliency: an external detector's foreground, ``(1 or N, H, W)``, bool or in [0, 1]; what it calls background
                (at most 0.5) may not change (section 4.4).
            internal_batch_size: at most so many images (views count) in one forward; the result is the same.
            output: ``"image"``: ``(N, 1, H, W)``; ``"native"``: ``(N, 1, h, w)``, on the grid of the image's own
                scale; ``"input"``: ``(N, C, H, W)``, shared out equally among the channels.
            normalize: drop negative values and divide by each map's peak (Eq. 4).
            show_progress: a progress bar, one tick a step.
            on_step: called with every `advcam_attr.types.ClimbStep`.

        Returns:
            The maps, float32, detached and contiguous, in a 1-tuple if the inputs were.

        Raises:
            TypeError, AdvCAMError (a ValueError): inputs, target or an option that cannot be used.
        """
        images, boxed = check_images(inputs)
        options = check_output(output, internal_batch_size)
        indices = check_targets(target, len(images))
        image_of = torch.arange(len(images), device=images.device)
        maps = self._climb_rows(
            images, indices, image_of, as_arguments(additional_forward_args), steps=steps, saliency=saliency,
            internal_batch_size=internal_batch_size, show_progress=show_progress, on_step=on_step,
        )  # fmt: skip
        result = finish(maps, images, options, normalize)
        return (result,) if boxed else result

    def attribute_classes(
        self,
        inputs: Tensor,
        classes: Sequence[Iterable[int]],
        additional_forward_args: Any = None,
        *,
        output: Output = "image",
        normalize: bool = False,
        **options: Any,
    ) -> list[Tensor]:
        """Climb several classes of each image; the classes of an image share its first forward.

        Args:
            inputs: ``(N, C, H, W)``.
            classes: for each image, its classes.
            additional_forward_args: as for `attribute`.
            output, normalize: as for `attribute`.
            **options: further keyword arguments of `attribute`.

        Returns:
            For each image, the maps of its classes, ``(classes, 1, H, W)``.

        Raises:
            TypeError, AdvCAMError (a ValueError): as `attribute`, and no class for an image.
        """
        images, _ = check_images(inputs)
        checked = check_output(output, options.get("internal_batch_size"))
        lists = [list(one) for one in classes]
        if len(lists) != len(images) or not all(lists):
            raise AdvCAMError(f"classes must hold at least one class for each of {len(images)} images, got {lists}")
        indices = [i for one in lists for i in check_targets(one, len(one))]
        counts = torch.tensor([len(one) for one in lists])
        image_of = torch.arange(len(images)).repeat_interleave(counts).to(images.device)
        known = {"steps": None, "saliency": None, "internal_batch_size": None, "show_progress": False, "on_step": None}
        for name in options:
            if name not in known:
                raise TypeError(f"attribute_classes has no option {name!r}")
        maps = self._climb_rows(images, indices, image_of, as_arguments(additional_forward_args), **(known | options))
        return list(finish(maps, images, checked, normalize).split(counts.tolist()))

    def _climb_rows(
        self,
        images: Tensor,
        indices: Sequence[int],
        image_of: Tensor,
        extra: Sequence[Any],
        *,
        steps: int | None,
        saliency: Tensor | None,
        internal_batch_size: int | None,
        show_progress: bool,
        on_step: Callable[[ClimbStep], None] | None,
    ) -> Tensor:
        """The aggregated maps of all rows on the grid of the image's own scale, ``(R, h, w)``."""
        steps = self.recipe.steps if steps is None else recipes.check_steps(steps)
        with undisturbed(self.view.model), self._precision(images):
            images = images.clone() if images.is_inference() else images
            background = check_background(saliency, images)
            head = self._head(images, extra)
            target = in_range(indices, head.classes, images.device)
            views = self.recipe.plan(self.base, steps).views.spread(images[:1]).shape[1]
            chunks = _chunks(image_of, internal_batch_size, views)
            ticks = sum(self.recipe.schedule(steps, s)[0] + 1 for s in self.recipe.scales) * len(chunks)
            parts: list[Tensor] = []
            with tqdm(total=ticks, desc="AdvCAM", unit="step", disable=not show_progress) as bar:

                def tick(step: ClimbStep) -> None:
                    bar.update()
                    if on_step is not None:
                        on_step(step)

                for rows in chunks:
                    parts.append(
                        self._climb_chunk(
                            images, background, target[rows], image_of[rows], extra, steps, head.grid, tick
                        )
                    )
        return torch.cat(parts)

    def _climb_chunk(
        self,
        images: Tensor,
        background: Tensor | None,
        target: Tensor,
        image_of: Tensor,
        extra: Sequence[Any],
        steps: int,
        grid: tuple[int, int],
        tick: Callable[[ClimbStep], None],
    ) -> Tensor:
        """The aggregated maps of some rows over all scales, ``(R, h, w)``."""
        plan = self.recipe.plan(self.base, steps)
        used, local = image_of.unique(return_inverse=True)
        several = len(used) < len(image_of)
        total: Tensor | None = None
        for scale in self.recipe.scales:
            scaled = self._scaled(images[used], scale)
            outside = None if background is None else background[image_of]
            if outside is not None:
                outside = to_grid(outside, (scaled.shape[2], scaled.shape[3]))
            views = plan.views.spread(scaled[:1]).shape[1]
            rows = take_rows(extra, image_of.repeat_interleave(views), len(images))
            count, weight = self.recipe.schedule(steps, scale)
            walk = climb(
                self.view, scaled, target, plan, steps=count, background=outside,
                image_of=local if several else None, extra=rows,
            )  # fmt: skip
            for step, summed in totals(walk, self.recipe.aggregate):  # noqa: B007
                tick(step)
            if summed.shape[1:] != grid:
                summed = resize(summed[:, None], grid)[:, 0]
            total = weight * summed if total is None else total + weight * summed
        assert total is not None
        return total

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        """The images at another scale, in the layout that was asked for.

        Raises:
            AdvCAMError: the model takes one size only.
        """
        if scale != 1:
            config = getattr(self.view.model, "pretrained_cfg", None) or {}
            if config.get("fixed_input_size", False):
                raise AdvCAMError(
                    f"scales={self.recipe.scales} need other image sizes, and {type(self.view.model).__name__} takes "
                    f"{tuple(images.shape[2:])} only: use scales=1.0, or make it with timm's dynamic_img_size=True"
                )
            size = [max(1, round(side * scale)) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _precision(self, images: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(images.device.type, dtype=self.autocast)


def _chunks(image_of: Tensor, internal_batch_size: int | None, views: int) -> list[Tensor]:
    rows = torch.arange(len(image_of), device=image_of.device)
    return [rows] if internal_batch_size is None else list(rows.split(max(1, internal_batch_size // views)))


def _autocast_dtype(value: Any) -> torch.dtype | None:
    if isinstance(value, bool):
        return torch.bfloat16 if value else None
    if value is None or isinstance(value, torch.dtype):
        return value
    raise TypeError(f"autocast must be a bool or a dtype, got {type(value).__name__} {value!r}")


def as_base(base: Any, view: HeadView) -> tuple[Base, bool]:
    """A base attribution from whatever names or is one, and whether it needs class weights.

    Raises:
        TypeError: it is none.
        AdvCAMError: an unknown name.
    """
    found = lookup(base, BASES, "base")
    if isinstance(found, MapAttribution) or (isinstance(found, type) and issubclass(found, MapAttribution)):
        return found.maps, found.needs_class_weights
    if isinstance(found, type) and issubclass(found, Attribution):
        return CaptumBase.of(found, view), False
    if isinstance(found, Attribution):
        return CaptumBase(found), False
    return require_callable(found, "base"), bool(getattr(found, "needs_class_weights", False))


def _base_name(base: Base) -> str:
    return getattr(base, "__qualname__", repr(base)).removesuffix(".maps")
