"""Head views: the features, logits and class weights of a classifier, from one forward without hooks."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advcam_attr.heads.capture import Capture, undisturbed
from advcam_attr.heads.cells import cells_of
from advcam_attr.heads.find import find_head, logits_of, output_site
from advcam_attr.heads.head import Exactness, Head, Site
from advcam_attr.heads.trace import Trace, record
from advcam_attr.heads.weights import Tail, all_class_weights, check_identity, class_weights
from advcam_attr.registry import nearest
from advcam_attr.types import AdvCAMError, Cells

#: A head, and the sites of its view's taps.
Found = tuple[Head, dict[str, Site]]


@dataclass(frozen=True)
class Activations:
    """One forward of B images, as class activation mapping needs it.

    Attributes:
        x: the images, ``(B, C, H, W)``.
        features: the mapped tensor, ``(B, C, h, w)``, on the autograd graph, in the model's precision.
        logits: ``(B, K)``, float32 (float64 stays), on the graph.
        taps: outputs of the view's tapped modules, by name.
    """

    x: Tensor
    features: Tensor
    logits: Tensor
    head: Head
    taps: Mapping[str, Tensor]
    _raw: Tensor
    _tail: Tail | None
    _memo: dict[str, Tensor]

    def gradient(self, scores: Tensor) -> Tensor:
        """Return the derivative of ``scores.sum()`` with respect to the features, ``(B, C, h, w)``, detached."""
        (gradient,) = torch.autograd.grad(scores.sum(), self._raw, retain_graph=True)
        return canonical(gradient, self.head)

    def class_weights(self, target: Tensor) -> Tensor:
        """Return the class weights of one class ``(B,)`` per image, ``(B, C)``, detached.

        ``mean(einsum("bc,bchw->bhw", weights, features)) + constant == logit`` for exact heads (and, image by image,
        for heads with a norm after the pool, its scale frozen).
        """
        return class_weights(self._need_tail(), target)

    def class_map(self, target: Tensor) -> Tensor:
        """Return the class activation map of one class per image, ``(B, h, w)``; class weights carry no gradient."""
        weights = self.class_weights(target).to(self.features.dtype)
        return at_least_float32(torch.einsum("bc,bchw->bhw", weights, self.features))

    def all_class_weights(self) -> Tensor:
        """Return the class weights of all classes, ``(K, C)``, detached; exact heads only."""
        if self.head.exactness != "exact":
            raise AdvCAMError(
                f"this needs class weights that are the same for every image; the head is {self.head.exactness} "
                f"({self.head.note})"
            )
        if "all" not in self._memo:
            self._memo["all"] = all_class_weights(self._need_tail())
        return self._memo["all"]

    def _need_tail(self) -> Tail:
        if self._tail is None:
            raise AdvCAMError(f"no class activation map for this model: {self.head.note}; {self.head.advice}")
        return self._tail


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precisions to float32; keep float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def canonical(tensor: Tensor, head: Head) -> Tensor:
    """Convert a tensor from the head's own layout to ``(B, C, h, w)``."""
    if head.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    if head.layout == "NLC":
        tensor = tensor.transpose(1, 2)
    return tensor if tensor.ndim == 4 else tensor[:, :, head.prefix :].unflatten(2, head.grid)


class HeadView:
    """A classifier as features and logits.

    Args:
        model: any eager classifier whose forward takes ``(N, C, H, W)`` and returns logits ``(N, K)``.
        layer: the module (or its name) whose output is mapped; None finds the tensor that is pooled.
        taps: names of modules whose outputs `Activations.taps` holds.
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module | None = None, taps: Sequence[str] = ()) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = unwrapped(model)
        self.layer = _layer_name(self.model, layer)
        self.taps = tuple(_layer_name(self.model, tap) or "" for tap in taps)
        self._found: dict[tuple[int, ...], Found] = {}
        self._cells: dict[tuple[int, ...], Cells] = {}
        self._shapes: tuple[int, nn.Module] | None = None  # the model on the meta device, with its modules' hash

    def __repr__(self) -> str:
        return f"HeadView({type(self.model).__name__}, layer={self.layer!r})"

    def inspect(self, x: Tensor, *extra: Any) -> Head:
        """Return the head for images of the size of ``x``, ``(N, C, H, W)``; traced once per size, and verified.

        Only the first image is used; ``extra`` are further arguments of the forward, for one image.
        """
        return self._sites(x, *extra)[0]

    def _sites(self, x: Tensor, *extra: Any) -> Found:
        modules = hash(tuple(map(id, self.model.modules())))
        key = (modules, *x.shape[1:])
        if key not in self._found:
            known = [found for seen, found in self._found.items() if seen[0] == modules]
            resized = self._resized(known[0], modules, x[:1], *extra) if known else None
            self._found[key] = resized or self._find(x[:1], *extra)
        return self._found[key]

    def cells(self, x: Tensor, *extra: Any) -> Cells:
        """Return the cells of the grid over images of the size of ``x``; one trace per size, of shapes if possible."""
        head = self.inspect(x, *extra)
        key = (hash(tuple(map(id, self.model.modules()))), *x.shape[1:])
        if key not in self._cells:
            trace = self._shape_trace(key[0], x[:1], *extra) or record(self.model, self.cast(x[:1]), *extra)
            self._cells[key] = cells_of(trace, head)
        return self._cells[key]

    def require(self, x: Tensor, *extra: Any, exactness: Sequence[Exactness] = ("exact", "linearised")) -> Head:
        """Return the head like `inspect`; raise AdvCAMError if it does not support class activation maps."""
        head = self.inspect(x, *extra)
        if head.exactness not in exactness:
            raise AdvCAMError(f"no class activation map for {type(self.model).__name__}: {head.note}; {head.advice}")
        return head

    def __call__(
        self, x: Tensor, *extra: Any, memo: dict[str, Tensor] | None = None, to_images: bool = True
    ) -> Activations:
        """Run one forward.

        Args:
            x: ``(B, C, H, W)``; cast to the model's own floating type.
            *extra: further arguments of the forward.
            memo: class weights that are the same for every image, shared by the forwards of a climb.
            to_images: whether gradients reach the images; without, they reach the features only, and nearly all of the
                memory is saved.
        """
        head, sites = self._sites(x, *extra)
        capture = Capture(head.site, sites, cut=not to_images)
        with capture:
            output = self.model(self.cast(x).clone(), *extra)  # a net may begin in place
        logits = logits_of(output)
        raw = capture.raw
        seen = [raw, *(capture.tapped.get(tap) for tap in sites)]
        if raw is None or any(tensor is None or len(tensor) != len(x) for tensor in seen):
            raise AdvCAMError(
                f"the forward of {type(self.model).__name__} did not repeat the path it took when it was traced; "
                "pass layer= a module that is always used"
            )
        tail = None
        if head.exactness != "none" and capture.pooled is not None:
            tail = Tail(capture.pooled, tuple(capture.tail), output)
        return Activations(
            x, canonical(raw, head), at_least_float32(logits), head, capture.tapped, raw, tail,
            {} if memo is None else memo,
        )  # fmt: skip

    def cast(self, x: Tensor) -> Tensor:
        """Convert ``x`` to the floating type of the model's first parameter."""
        first = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        return x if first is None else x.to(first.dtype)

    def _resized(self, known: Found, modules: int, image: Tensor, *extra: Any) -> Found | None:
        """The head at another image size, if a trace of shapes alone shows the verified head on another grid."""
        trace = self._shape_trace(modules, image, *extra)
        if trace is None:
            return None
        try:
            head = find_head(trace, self.layer)
            taps = {tap: output_site(trace, tap) for tap in self.taps}
        except AdvCAMError:
            return None
        first = known[0]
        same = dataclasses.replace(head, grid=first.grid, stride=first.stride) == first
        return (head, taps) if same else None

    def _shape_trace(self, modules: int, image: Tensor, *extra: Any) -> Trace | None:
        """A trace of shapes alone, which costs no forward: data sets have hundreds of sizes.

        Hooks of the user must not see tensors without data, so a model with hooks is traced with real ones.
        """
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())
        if extra or hooked or image.is_meta or not bool(image.isfinite().all()):
            return None
        try:
            if self._shapes is None or self._shapes[0] != modules:
                self._shapes = modules, _on_meta(self.model)
            return record(self._shapes[1], self.cast(image).to("meta"))
        except Exception:  # the model cannot be copied, or its forward needs data
            return None

    def _find(self, image: Tensor, *extra: Any) -> Found:
        trace = record(self.model, self.cast(image), *extra)
        head = find_head(trace, self.layer)
        if not image.is_meta and _are_probabilities(trace.output):
            warnings.warn(
                f"{type(self.model).__name__} returns probabilities, not logits: they saturate, and climbs stall; "
                "leave out its softmax",
                stacklevel=2,
            )
        if not image.is_meta and not bool(trace.output.isfinite().all()):
            raise AdvCAMError(f"the logits are not finite: {_not_finite(self.model, image)}")
        if head.exactness != "none" and not image.is_meta:
            capture = Capture(head.site, {})
            with torch.no_grad(), capture:
                output = self.model(self.cast(image).clone(), *extra)
            if capture.raw is None or capture.pooled is None:
                raise AdvCAMError(f"the forward of {type(self.model).__name__} does not repeat itself; pass layer=")
            tail = Tail(capture.pooled, tuple(capture.tail), output)
            check_identity(head, canonical(capture.raw, head), tail)
        return head, {tap: output_site(trace, tap) for tap in self.taps}


def _are_probabilities(outputs: Tensor) -> bool:
    return outputs.shape[1] > 1 and bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())


def view(model: nn.Module, layer: str | nn.Module | None = None, taps: Sequence[str] = ()) -> HeadView:
    """Return a `HeadView` of ``model``."""
    return HeadView(model, layer, taps)


def inspect(model: nn.Module, inputs: Tensor | None = None, *, layer: str | nn.Module | None = None) -> Head:
    """Return what a classifier's head looks like to class activation mapping; ``print`` it.

    Args:
        model: a classifier that takes ``(N, C, H, W)`` and returns logits ``(N, K)``.
        inputs: images of the wanted size; None is a random one of the size in the model's ``pretrained_cfg``, or 224².
        layer: the module, or its name, whose output is mapped; None finds it.

    Example:
        >>> import torch, advcam_attr
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> print(advcam_attr.inspect(net))
        head        NCHW mean -> linear, 2 classes
        layer       1 (NCHW)
        grid        222 x 222 cells of 4 channels, stride 1.00901 x 1.00901
        CAM         exact: the mean of a class's map plus a constant is its logit
    """
    if inputs is None:
        config = getattr(unwrapped(model), "pretrained_cfg", None) or {}
        inputs = torch.rand(1, *config.get("input_size", (3, 224, 224)), generator=torch.Generator().manual_seed(0))
        first = next(unwrapped(model).parameters(), None)
        inputs = inputs if first is None else inputs.to(first.device)
    with undisturbed(unwrapped(model)):
        return HeadView(model, layer).inspect(inputs)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the eager module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    while True:
        wraps = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = getattr(model, "module" if wraps else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the meta device: modules and shapes without numbers."""
    memo: dict[int, Any] = {id(buffer): buffer.detach().to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(model, memo).eval()


def _not_finite(model: nn.Module, image: Tensor) -> str:
    if not bool(image.isfinite().all()):
        return "the image has NaN or infinite values"
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"the model's parameter {name!r} has NaN or infinite values; load another checkpoint"
    return f"the net overflows in {next((p.dtype for p in model.parameters()), image.dtype)}"


def _layer_name(model: nn.Module, layer: str | nn.Module | None) -> str | None:
    if layer is None:
        return None
    names = dict(model.named_modules())
    if isinstance(layer, str):
        if layer in names:
            return layer
        raise AdvCAMError(f"the model has no layer {layer!r}{nearest(layer, names)}")
    if isinstance(layer, nn.Module):
        found = next((name for name, module in names.items() if module is layer), None)
        if found is None:
            raise AdvCAMError(f"layer {type(layer).__name__} is not a module of this model")
        return found
    raise TypeError(f"layer must be a module, its name or None, got {type(layer).__name__}")
