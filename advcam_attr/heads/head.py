"""A classifier's head, as class activation mapping needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from advcam_attr.heads.trace import Site

Exactness = Literal["exact", "linearised", "none"]


class Reason(Enum):
    """Why a head is exact, linearised or without class activation map; the value is the first part of its note."""

    AFFINE = "mean(class map) + constant == logit"
    NORM = "a norm after the pool: class weights with the norm's scale frozen"
    NONLINEAR = "a non-linear tail: class weights are the derivative of the logit, image by image"
    SEVERAL_POOLS = "the logits also read other pooled tensors, whose share has no place on the map"
    CLASS_TOKEN = "the logits read a class token, not a mean over the grid"
    FLATTENED = "the grid is flattened into the classifier: every position has its own weights"
    WEIGHTED = "the grid is pooled by attention or unequal weights, not by a mean"
    CONVOLUTION = "a convolution as large as the grid replaces the pooling: every position has its own weights"
    MAXIMUM = "the grid is pooled by a maximum, not by a mean"
    OTHER = "the grid is not reduced by a mean"
    UNVERIFIED = "the mean of the class map and the logit disagree"
    CHOSEN_LAYER = "the chosen layer is not the tensor that is pooled"


_CAM: dict[Exactness, str] = {
    "exact": "exact: the mean of a class's map plus a constant is its logit",
    "linearised": "linearised: the class weights are the derivative of the logit, for each image its own",
    "none": "there is none; base grad_cam, layer_cam and grad_cam++ work on this grid",
}


@dataclass(frozen=True)
class Head:
    """A classifier's head; ``print`` it for a description.

    Attributes:
        kind: e.g. ``"NCHW mean -> linear"``.
        exactness: ``"exact"``: the mean of a class map plus a constant is the logit; ``"linearised"``: the class
            weights are the derivative of the logit (norms after the pool with their scale frozen); ``"none"``: there
            is no class activation map, Grad-CAM's family works on ``layer``.
        layer: the outermost module that returns the mapped tensor, or None if no module does.
        layout: a letter for each of its axes: N, C, H, W, and L for axes that together hold the h·w positions.
        grid: (h, w) of the map.
        channels: C.
        classes: K.
        stride: image pixels per grid cell, (vertical, horizontal).
        prefix: tokens before the grid's (class and register tokens).
        reason: of the exactness.
        note: the reason in one line.
        site: of the mapped tensor.
        pool: of the pooled vector, if the mean is taken in several calls.
        order: the grid's positions, row by row, among all entries of the axes H and W, or L; None where they follow
            each other after the prefix.
    """

    kind: str
    exactness: Exactness
    layer: str | None
    layout: str
    grid: tuple[int, int]
    channels: int
    classes: int
    stride: tuple[float, float]
    prefix: int
    reason: Reason
    note: str
    site: Site
    pool: Site | None = None
    order: tuple[int, ...] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = {
            "head": f"{self.kind}, {self.classes} classes",
            "layer": f"{self.layer or 'between modules'} ({self.layout})",
            "grid": f"{self.grid[0]} x {self.grid[1]} cells of {self.channels} channels, "
            f"stride {self.stride[0]:g} x {self.stride[1]:g}",
            "CAM": _CAM[self.exactness],
        }
        if self.exactness != "exact":
            lines["note"] = self.note
        return "\n".join(f"{name:<11} {text}" for name, text in lines.items())

    @property
    def advice(self) -> str | None:
        """The methods that work where there is no class activation map."""
        return None if self.exactness != "none" else 'base="grad_cam" (or "layer_cam", "grad_cam++") works on this grid'
