"""AdvCAM as a Captum attribution: the maps of a climb, summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

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
    check_image_of,
    check_images,
    check_output,
    check_targets,
    finish,
    in_range,
    select_arguments,
    to_size,
)
from advcam_attr.attr.cam import CAM
from advcam_attr.attr.grad_cams import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from advcam_attr.climbing import recipes
from advcam_attr.climbing.loop import climb, to_grid, totals, unclimbed
from advcam_attr.climbing.state import Aggregate, Base, Clamp, Mask, Objective, Regularizer, StepRule, Stop, Views
from advcam_attr.heads import HeadView, undisturbed, unwrapped, view
from advcam_attr.registry import lookup, require_callable, require_options, suggests_options
from advcam_attr.types import AdvCAMError, ClimbStep, check_resized

if TYPE_CHECKING:
    from typing_extensions import Unpack

BASES: dict[str, type[MapAttribution]] = {
    "cam": CAM,
    "grad_cam": GradCAM,
    "grad_cam++": GradCAMPlusPlus,
    "layer_cam": LayerCAM,
    "hires_cam": HiResCAM,
    "xgrad_cam": XGradCAM,
    "eigen_cam": EigenCAM,
}


class AttributeOptions(TypedDict, total=False):
    """Keyword options of `AdvCAM.attribute` and `AdvCAM.attribute_classes`."""

    steps: int | None
    saliency: Tensor | None
    internal_batch_size: int | None
    output: Output
    normalize: bool
    show_progress: bool
    on_step: Callable[[ClimbStep], None] | None


class AdvCAM(MapAttribution):
    """AdvCAM (Lee et al., TPAMI 2022): class maps of an image perturbed towards its class, summed over the steps.

    The image is perturbed by gradient ascent on the objective (the target's logit, less that of other classes, less a
    penalty for changes of activated cells; Eqs. 6 and 7), and the maps of all steps are summed (Eq. 4)::

        total = 0
        for step in AdvCAM(model, stop=None).climb(images, target):  # one forward and one backward per step
            total = total + step.maps

    The model needs no retraining. Zero steps give the base attribution. Deviations from the released code are those of
    the recipe; ``recipe="official"`` has one: the image is resized to other scales as a tensor (bicubic, antialiased),
    not as an 8-bit image.

    Args:
        model: a classifier that takes ``(N, C, H, W)`` and returns logits ``(N, K)``.
        layer: the module, or its name, whose output is mapped; None takes the one of ``base``, or finds it.
        base: ``"cam"``, ``"grad_cam"``, ``"grad_cam++"``, ``"layer_cam"``, ``"hires_cam"``, ``"xgrad_cam"``,
            ``"eigen_cam"``; one of their classes or instances; a Captum attribution (class or instance); or a callable
            ``(activations, target) -> (B, h, w)``. A callable may have a method ``accumulated`` of the same form, whose
            maps are summed in place of its own, and ``taps``, names of modules whose outputs it finds in
            ``activations.taps``.
        recipe: ``"auto"``, ``"official"``, ``"paper"``, ... or a `Recipe`.
        steps, scales, flip, objective, regularizers, mask, step_rule, clamp, aggregate: in place of the recipe's; None
            takes the recipe's. See `Recipe`.
        stop: in place of the recipe's; None takes all steps.
        autocast: the dtype of torch's autocast; True is bfloat16.
        channels_last: convert the images to this memory format; the model's is up to the caller.

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

    @suggests_options
    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        base: str | Base | MapAttribution | Attribution | type[Attribution] = "cam",
        recipe: str | recipes.Recipe = "auto",
        steps: int | None = None,
        scales: float | Iterable[float] | None = None,
        flip: bool | str | Views | None = None,
        objective: str | Objective | None = None,
        regularizers: float | str | Regularizer | Sequence[float | str | Regularizer] | None = None,
        mask: float | str | Mask | None = None,
        step_rule: float | str | StepRule | None = None,
        clamp: str | Clamp | None = None,
        stop: float | str | Stop | None = "recipe",
        aggregate: str | Aggregate | None = None,
        autocast: bool | torch.dtype = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(model, _layer_of(base, model, layer))
        self.view = HeadView(self.view.model, self.view.layer, getattr(base, "taps", ()))
        given = {
            "steps": steps, "scales": scales, "flip": flip, "objective": objective, "regularizers": regularizers,
            "mask": mask, "step_rule": step_rule, "clamp": clamp, "aggregate": aggregate,
        }  # fmt: skip
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        changes |= {} if stop == "recipe" else {"stop": stop}
        self.recipe = recipes.get(recipe, **changes)
        self.autocast = _autocast_dtype(autocast)
        self.channels_last = channels_last
        self.base, self.needs_class_weights = as_base(base, self.view)

    def __repr__(self) -> str:
        return f"AdvCAM({type(self.view.model).__name__}, base={_base_name(self.base)}, recipe={self.recipe.name!r})"

    @log_usage()
    @suggests_options
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
            inputs: normalised images, ``(N, C, H, W)``, or a 1-tuple of them.
            target: the class of each image: an int for all, or N of them (list or tensor); negative ones count from
                the end.
            additional_forward_args: further arguments of the model's forward; tensors with N entries are indexed with
                the images.
            steps: in place of the recipe's; 0 is the base attribution of the image alone.
            saliency: an external detector's foreground, ``(1 or N, H, W)``, bool or in [0, 1]; its background (at most
                0.5) should not change (section 4.4).
            internal_batch_size: the most images (views count) in one forward; the result is the same.
            output: ``"image"``: ``(N, 1, H, W)``; ``"native"``: ``(N, 1, h, w)``, on the grid of the image's own
                scale; ``"input"``: ``(N, C, H, W)``, divided equally among the channels.
            normalize: drop negative values and divide by each map's peak (Eq. 4).
            show_progress: a progress bar, one tick per step.
            on_step: called with every `ClimbStep`.

        Returns:
            The maps, float32, detached and contiguous, in a 1-tuple if the inputs were.

        Raises:
            TypeError, AdvCAMError (a ValueError): inputs, target or an option that cannot be used.
        """
        images, boxed = check_images(inputs)
        maps = self._attribute(
            images, check_targets(target, len(images)), None, additional_forward_args, steps=steps, saliency=saliency,
            internal_batch_size=internal_batch_size, output=output, normalize=normalize, show_progress=show_progress,
            on_step=on_step,
        )  # fmt: skip
        return (maps,) if boxed else maps

    def attribute_classes(
        self,
        inputs: Tensor,
        classes: Sequence[Iterable[int]],
        additional_forward_args: Any = None,
        **options: Unpack[AttributeOptions],
    ) -> list[Tensor]:
        """Climb several classes of each image, ``classes[n]`` of image n; other arguments as for `attribute`.

        Returns:
            For each image, the maps of its classes, ``(classes, 1, H, W)``.
        """
        images, _ = check_images(inputs)
        lists = [list(one) for one in classes]
        if len(lists) != len(images) or not all(lists):
            raise AdvCAMError(f"classes must hold at least one class for each of {len(images)} images, got {lists}")
        require_options("AdvCAM.attribute_classes", options, AttributeOptions.__annotations__)
        target = [i for one in lists for i in check_targets(one, len(one))]
        counts = [len(one) for one in lists]
        image_of = torch.arange(len(images)).repeat_interleave(torch.tensor(counts)).to(images.device)
        return list(self._attribute(images, target, image_of, additional_forward_args, **options).split(counts))

    @suggests_options
    def climb(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        steps: int | None = None,
        saliency: Tensor | None = None,
        image_of: Tensor | None = None,
    ) -> Iterator[ClimbStep]:
        """Climb each sample's class and yield every step, scale by scale, the clean image first.

        Args:
            inputs, target, additional_forward_args, steps, saliency: as for `attribute`.
            image_of: the image of each sample, ``(R,)``, where images have several classes or none; None is one sample
                per image. With it, ``target`` has a class per sample.

        Example:
            >>> import torch
            >>> from advcam_attr import AdvCAM
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
            ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
            ... )
            >>> advcam = AdvCAM(net, steps=2, scales=(0.5, 1.0), stop=None)
            >>> [(step.scale, step.index) for step in advcam.climb(torch.rand(1, 3, 16, 16), target=1)]
            [(0.5, 0), (0.5, 1), (0.5, 2), (1.0, 0), (1.0, 1), (1.0, 2)]

        Raises:
            TypeError, AdvCAMError (a ValueError): inputs, target or an option that cannot be used.
        """
        recipe = self.recipe if steps is None else self.recipe.with_(steps=steps)
        images, _ = check_images(inputs)
        image_of = torch.arange(len(images), device=images.device) if image_of is None else image_of
        check_image_of(image_of, len(images))
        indices = check_targets(target, len(image_of))
        climbed = self._climb(images, indices, image_of, additional_forward_args, recipe, saliency)
        while True:
            with undisturbed(self.view.model):
                step = next(climbed, None)
            if step is None:
                return
            yield step

    def _climb(
        self,
        images: Tensor,
        indices: Sequence[int],
        image_of: Tensor,
        additional_forward_args: Any,
        recipe: recipes.Recipe,
        saliency: Tensor | None,
    ) -> Iterator[ClimbStep]:
        images = images.clone() if images.is_inference() else images
        extra = as_arguments(additional_forward_args)
        background = check_background(saliency, images)
        target = in_range(indices, self._head(images, extra).classes, images.device)
        plan = recipe.plan(self.base)
        used, local = image_of.unique(return_inverse=True)
        for scale in plan.scales:
            steps, weight = plan.schedule(plan.steps, scale)
            shared = steps == 0 and len(used) < len(image_of)
            taken = used if shared else image_of
            x = self._scaled(images[taken], scale)
            views = plan.views.spread(x[:1]).shape[1]
            options: dict[str, Any] = {
                "background": None if background is None else to_grid(background[image_of], (x.shape[2], x.shape[3])),
                "extra": select_arguments(extra, taken.repeat_interleave(views), len(images)),
                "autocast": self.autocast,
            }
            climbed: Iterable[ClimbStep] = (
                [unclimbed(self.view, x, target, local, plan, **options)]
                if shared
                else climb(self.view, x, target, plan, steps=steps, **options)
            )
            for step in climbed:
                yield replace(step, scale=scale, weight=weight)

    def _attribute(
        self,
        images: Tensor,
        indices: Sequence[int],
        image_of: Tensor | None,
        additional_forward_args: Any,
        *,
        steps: int | None = None,
        saliency: Tensor | None = None,
        internal_batch_size: int | None = None,
        output: Output = "image",
        normalize: bool = False,
        show_progress: bool = False,
        on_step: Callable[[ClimbStep], None] | None = None,
    ) -> Tensor:
        check_output(output, internal_batch_size)
        image_of = torch.arange(len(images), device=images.device) if image_of is None else image_of
        recipe = self.recipe if steps is None else self.recipe.with_(steps=steps)
        recipe = recipe.unclimbed() if recipe.steps == 0 else recipe
        plan = recipe.plan(self.base)
        views = plan.views.spread(images[:1]).shape[1]
        at_once = len(image_of) if internal_batch_size is None else max(1, internal_batch_size // views)
        chunks = torch.arange(len(image_of), device=images.device).split(at_once)
        ticks = sum(plan.schedule(plan.steps, scale)[0] + 1 for scale in plan.scales) * len(chunks)
        parts: list[Tensor] = []
        with (
            undisturbed(self.view.model),
            tqdm(total=ticks, desc="AdvCAM", unit="step", disable=not show_progress) as bar,
        ):
            grid = self._head(images, as_arguments(additional_forward_args)).grid
            for chunk in chunks:
                target = [indices[r] for r in chunk.tolist()]
                climbed = self._climb(images, target, image_of[chunk], additional_forward_args, recipe, saliency)
                summed: Tensor | None = None
                for step, total in totals(climbed, plan.aggregate):
                    bar.update()
                    if on_step is not None:
                        on_step(step)
                    if step.index == step.steps:
                        maps = to_size(total, grid)
                        summed = step.weight * maps if summed is None else summed + step.weight * maps
                assert summed is not None
                parts.append(summed)
        return finish(torch.cat(parts), images, output, normalize)

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        if scale != 1:
            config = getattr(self.view.model, "pretrained_cfg", None) or {}
            if config.get("fixed_input_size", False):
                raise AdvCAMError(
                    f"scales={self.recipe.scales} need other image sizes, and {type(self.view.model).__name__} takes "
                    f"{tuple(images.shape[2:])} only: use scales=1.0, or make it with timm's dynamic_img_size=True"
                )
            check_resized(images.shape[2] * scale, images.shape[3] * scale, f"lower scales={self.recipe.scales}")
            size = [max(1, round(side * scale)) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def _autocast_dtype(value: Any) -> torch.dtype | None:
    if isinstance(value, bool):
        return torch.bfloat16 if value else None
    if value is None or isinstance(value, torch.dtype):
        return value
    raise TypeError(f"autocast must be a bool or a dtype, got {type(value).__name__} {value!r}")


def _layer_of(base: Any, model: nn.Module, layer: str | nn.Module | None) -> str | nn.Module | None:
    """The layer to map, which a base attribution may have of its own."""
    if not isinstance(base, MapAttribution):
        return layer
    if isinstance(base, AdvCAM):
        raise AdvCAMError("base is an AdvCAM, which climbs itself: pass its own base")
    if base.view.model is not unwrapped(model):
        raise AdvCAMError(f"base {base!r} is of another model: make it of AdvCAM's, or pass its class")
    if layer is not None and base.view.layer not in (None, view(model, layer).layer):
        raise AdvCAMError(f"base {base!r} and layer={layer!r} name two layers: leave out one")
    return base.view.layer if layer is None else layer


def as_base(base: Any, view: HeadView) -> tuple[Base, bool]:
    """Return a base attribution from its name, class, instance or callable, and whether it needs class weights."""
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
