"""A loaded model and what was found of its head in; lines that tell a user what can be done with it, out."""

from __future__ import annotations

from advcam_attr.heads import Head
from advcam_attr.networks.load import LoadedModel

_CAM = {
    "exact": "exact: the mean of a class's map plus a constant is its logit",
    "linearised": "linearised: the class weights are the derivative of the logit, for each image its own",
    "none": "there is none; --base grad_cam, layer_cam and grad_cam++ work on this grid",
}


def inspection(loaded: LoadedModel, head: Head) -> str:
    """Describe a model's head.

    Args:
        loaded: the model.
        head: what `advcam_attr.heads.HeadView.inspect` found.

    Returns:
        Several lines: head, layer, grid and stride, whether class activation maps are exact, and the input.
    """
    input_size, prepared = loaded.preprocessing.size, loaded.preprocessing
    size = "any size" if input_size is None else f"{input_size[0]} x {input_size[1]} pixels"
    if input_size is not None:
        size += (
            " only (other sizes need --input-size or --model-args)" if loaded.fixed_size else "; other sizes work too"
        )
    lines = {
        "head": f"{head.kind}, {head.classes} classes",
        "layer": f"{head.layer or 'between modules'} ({head.layout})",
        "grid": f"{head.grid[0]} x {head.grid[1]} cells of {head.channels} channels, "
        f"stride {head.stride[0]:g} x {head.stride[1]:g}",
        "CAM": _CAM[head.exactness],
        "input": size,
    }
    if prepared.mean is not None and prepared.std is not None:
        lines["normalised"] = f"mean {_numbers(prepared.mean)}, std {_numbers(prepared.std)}"
    if head.exactness != "exact":
        lines["note"] = head.note
    return "\n".join([loaded.name, *(f"  {name:<12}{text}" for name, text in lines.items())])


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
