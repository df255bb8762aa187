"""Head views: the features, logits and class weights of a classifier, from one forward without hooks."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advcam_attr.heads.capture import Capture, undisturbed
from advcam_attr.heads.cells import cells_of
from advcam_attr.heads.find import find_head, logits_of, output_site
from advcam_attr.heads.head import Exactness, Head, Reason, Site
from advcam_attr.heads.layers import has_hooks, layer_name, on_meta
from advcam_attr.heads.trace import Trace, record
from advcam_attr.heads.weights import Tail, all_class_weights, class_weights, derivative, identity_fault
from advcam_attr.types import AdvCAMError, Cells


@dataclass(frozen=True)
class Found:
    """A head, the sites of its view's taps, and the path of the forward that has them."""

    head: Head
    taps: dict[str, Site]
    path: int


#: How often a forward is traced again because it took another path; a model may fill a cache in its first.
_TRACES = 3


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
        gradient = derivative(scores.sum(), self._raw)
        _warn_of_zeros(gradient, f"the gradient at {self.head.layer or self.head.site.name!r}")
        return canonical(gradient, self.head)

    def class_weights(self, target: Tensor) -> Tensor:
        """Return the class weights of one class ``(B,)`` per image, ``(B, C)``, detached.

        ``mean(einsum("bc,bchw->bhw", weights, features)) + constant == logit`` for exact heads (and, image by image,
        for heads with a norm after the pool, its scale frozen).
        """
        weights = class_weights(self._need_tail(), target)
        _warn_of_zeros(weights, "the derivative of the logit with respect to the pooled features")
        return weights

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


def _warn_of_zeros(derivatives: Tensor, what: str) -> None:
    """Warn of images whose derivative is exactly zero everywhere, which no evidence in the image explains."""
    zero = int((derivatives == 0).flatten(1).all(1).sum())
    if zero:
        warnings.warn(
            f"{what} is exactly zero everywhere in {zero} of {len(derivatives)} images, and so are their maps: "
            "is the output saturated (a sigmoid or softmax at the end) or the class's weights zero?",
            stacklevel=4,
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precisions to float32; keep float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def canonical(tensor: Tensor, head: Head) -> Tensor:
    """Convert a tensor from the head's own layout to ``(B, C, h, w)``."""
    axes = [axis for letter in "NCHWL" for axis, own in enumerate(head.layout) if own == letter]
    tensor = tensor.permute(axes)
    if head.order is None and "H" in head.layout:
        return tensor
    h, w = head.grid
    lines = tensor.flatten(2)
    at = slice(head.prefix, head.prefix + h * w) if head.order is None else list(head.order)
    return lines[:, :, at].unflatten(2, head.grid)


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
        self.layer = layer_name(self.model, layer)
        self.taps = tuple(layer_name(self.model, tap) or "" for tap in taps)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in ("model", "layer", "taps")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self, structure: _Structure = ((), ())) -> None:
        self._structure = structure
        self._found: dict[tuple[int, ...], Found] = {}
        self._cells: dict[tuple[int, ...], Cells] = {}
        self._shapes: nn.Module | None = None  # the model on the meta device

    def __repr__(self) -> str:
        return f"HeadView({type(self.model).__name__}, layer={self.layer!r})"

    def inspect(self, x: Tensor, *extra: Any) -> Head:
        """Return the head for images of the size of ``x``, ``(N, C, H, W)``; traced once per size, and verified.

        Only the first image is used; ``extra`` are further arguments of the forward, for one image.
        """
        return self._sites(x, *extra).head

    def _sites(self, x: Tensor, *extra: Any) -> Found:
        structure = _structure(self.model)
        if structure != self._structure:
            self._forget(structure)
        found = self._found.get(tuple(x.shape)) or self._found.get(tuple(x.shape[1:]))
        if found is None:
            known = next(iter(self._found.values()), None)
            resized = self._resized(known, x[:1], *extra) if known else None
            found = self._found[tuple(x.shape[1:])] = resized or self._find(x[:1], *extra)
        return found

    def cells(self, x: Tensor, *extra: Any) -> Cells:
        """Return the cells of the grid over images of the size of ``x``; one trace per size, of shapes if possible."""
        head, key = self.inspect(x, *extra), tuple(x.shape[1:])
        if key not in self._cells:
            trace = self._shape_trace(x[:1], *extra) or record(self.model, self.cast(x[:1]), *extra)
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
        for attempt in range(_TRACES):
            # traced before a cache was filled, or on another path, perhaps that of this batch alone: search again
            found = self._find(x if attempt > 1 else x[:1], *extra) if attempt else self._sites(x, *extra)
            head, image = found.head, self.cast(x).clone()  # a net may begin in place
            capture = Capture(head.site, found.taps, cut=not to_images, pool=head.pool)
            with capture:
                output = self.model(image, *extra)
            logits, raw = logits_of(output), capture.raw
            same_path = capture.path.digest == found.path and logits.shape[1] == head.classes
            if same_path and raw is not None and raw.shape[head.layout.index("N")] == len(x):
                break
        else:
            raise _no_repeat(self.model)
        if attempt:
            self._found[tuple(x.shape if attempt > 1 else x.shape[1:])] = found
        tail = None if head.exactness == "none" else capture.tail(output)
        return Activations(
            x, canonical(raw, head), at_least_float32(logits), head, capture.tapped, raw, tail,
            {} if memo is None else memo,
        )  # fmt: skip

    def cast(self, x: Tensor) -> Tensor:
        """Convert ``x`` to the floating type of the model's first parameter."""
        first = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        return x if first is None else x.to(first.dtype)

    def _resized(self, known: Found, image: Tensor, *extra: Any) -> Found | None:
        """The head at another image size, if a trace of shapes alone shows the verified head on another grid."""
        trace = self._shape_trace(image, *extra)
        try:
            found = None if trace is None else self._searched(trace)
        except AdvCAMError:
            return None
        first = known.head
        same = (
            found and dataclasses.replace(found.head, grid=first.grid, stride=first.stride, order=first.order) == first
        )
        return found if same else None

    def _shape_trace(self, image: Tensor, *extra: Any) -> Trace | None:
        """A trace of shapes alone, which costs no forward: data sets have hundreds of sizes.

        Hooks of the user must not see tensors without data, so a model with hooks is traced with real ones.
        """
        if extra or has_hooks(self.model) or image.is_meta or not bool(image.isfinite().all()):
            return None
        try:
            if self._shapes is None:
                self._shapes = on_meta(self.model)
            return record(self._shapes, self.cast(image).to("meta"))
        except Exception:  # the model cannot be copied, or its forward needs data
            return None

    def _searched(self, trace: Trace) -> Found:
        taps = {tap: output_site(trace, tap) for tap in self.taps}
        return Found(find_head(trace, self.layer), taps, trace.path.digest)

    def _find(self, image: Tensor, *extra: Any) -> Found:
        for _ in range(_TRACES):
            trace = record(self.model, self.cast(image), *extra)
            found = self._searched(trace)
            if image.is_meta:
                return found
            if not bool(trace.output.isfinite().all()):
                raise AdvCAMError(f"the logits are not finite: {_not_finite(self.model, image)}")
            capture, again = Capture(found.head.site, found.taps, pool=found.head.pool), self.cast(image).clone()
            with torch.no_grad(), capture:
                output = self.model(again, *extra)
            if capture.path.digest == found.path and capture.raw is not None:
                tail = None if found.head.exactness == "none" else capture.tail(output)
                if tail is not None:
                    head = _verified(found.head, canonical(capture.raw, found.head), tail)
                    found = dataclasses.replace(found, head=head)
                break
        else:
            raise _no_repeat(self.model)
        if _are_probabilities(trace.output):
            warnings.warn(
                f"{type(self.model).__name__} returns probabilities, not logits: they saturate, and climbs stall; "
                "leave out its softmax",
                stacklevel=2,
            )
        return found


def _no_repeat(model: nn.Module) -> AdvCAMError:
    return AdvCAMError(
        f"the forward of {type(model).__name__} did not repeat the path it took when it was traced; "
        "pass layer= a module that is always used"
    )


def _verified(head: Head, features: Tensor, tail: Tail) -> Head:
    """The head, or where its class map and logit disagree, one without class activation map."""
    try:
        fault = identity_fault(head, features, tail)
    except AdvCAMError as error:
        fault = str(error)
    return head if fault is None else dataclasses.replace(head, exactness="none", reason=Reason.UNVERIFIED, note=fault)


#: The modules of a model, and the shapes of its parameters.
_Structure = tuple[tuple[weakref.ref[nn.Module], ...], tuple[torch.Size, ...]]


def _structure(model: nn.Module) -> _Structure:
    return tuple(map(weakref.ref, model.modules())), tuple(p.shape for p in model.parameters())


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


def _not_finite(model: nn.Module, image: Tensor) -> str:
    if not bool(image.isfinite().all()):
        return "the image has NaN or infinite values"
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"the model's parameter {name!r} has NaN or infinite values; load another checkpoint"
    return f"the net overflows in {next((p.dtype for p in model.parameters()), image.dtype)}"
