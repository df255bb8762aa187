"""Synthetic scenes of animals with exact masks; only the head identifies the class.

Each animal has a head with the pattern of its class, and a larger body whose hue is weakly correlated with the class. A
classifier therefore looks at heads, and its class activation map covers little more than them, while the mask covers
the whole animal: the problem that AdvCAM addresses, at a size that trains in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advcam_attr.types import AdvCAMError

Grid = np.ndarray  # (H, W) float64

#: The patterns of the heads in the order of the classes, from coordinates in pixels to 0 or 1.
_PATTERNS: dict[str, Callable[[Grid, Grid], Grid]] = {
    "striped": lambda u, v: u % 6 < 3,
    "checked": lambda u, v: (u % 8 < 4) ^ (v % 8 < 4),
    "dotted": lambda u, v: (u % 7 - 3) ** 2 + (v % 7 - 3) ** 2 < 5,
    "ringed": lambda u, v: np.hypot(u, v) % 6 < 3,
}

#: Named by the patterns of the heads.
CLASS_NAMES = tuple(_PATTERNS)

#: Standard deviation of a body's hue around its class's (the hues of neighbouring classes are 1 / K apart).
_HUE_SPREAD = 0.09

BACKGROUND, HEAD, BODY = 0, 1, 2


@dataclass(frozen=True)
class ToyScenes:
    """N scenes of S × S pixels.

    Attributes:
        images: ``(N, 3, S, S)`` float32 in [0, 1].
        labels: ``(N, K)`` bool, the classes in the scene.
        masks: ``(N, S, S)`` uint8, 0 for the background and k + 1 for class k.
        parts: ``(N, S, S)`` uint8, `BACKGROUND`, `HEAD` or `BODY`.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    parts: Tensor


def make_scenes(count: int, *, size: int = 96, seed: int = 0) -> ToyScenes:
    """Draw N scenes of one to three animals on textured ground, S pixels a side (at least 48).

    Scene i depends on ``seed``, ``size`` and i alone; no global random state is used.

    Example:
        >>> scenes = make_scenes(2, size=64)
        >>> scenes.images.shape, scenes.masks.shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2, 64, 64]))
    """
    if count < 1 or size < 48:
        raise AdvCAMError(f"toy scenes need count >= 1 and size >= 48, got count={count} and size={size}")
    drawn = [_draw_scene(np.random.default_rng([seed, index]), size) for index in range(count)]
    images, masks, parts = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    labels = np.stack([[k + 1 in mask for k in range(len(CLASS_NAMES))] for mask in masks])
    return ToyScenes(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(),
        labels=torch.from_numpy(labels),
        masks=torch.from_numpy(masks),
        parts=torch.from_numpy(parts),
    )


def _draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = _ground(rng, size)
    mask = np.zeros((size, size), np.uint8)
    parts = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(len(CLASS_NAMES)))
        _draw_animal(rng, label, image, mask, parts)
    noisy = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    return noisy, mask, parts


def _draw_animal(rng: np.random.Generator, label: int, image: np.ndarray, mask: np.ndarray, parts: np.ndarray) -> None:
    """Draw one animal where it covers no other; a crowded scene may have no place for it."""
    size = len(mask)
    for _ in range(20):
        length, width = size * rng.uniform(0.18, 0.26), size * rng.uniform(0.10, 0.14)
        angle = rng.uniform(0, 2 * np.pi)
        centre = rng.uniform(0.16, 0.84, 2) * size
        y, x = np.mgrid[:size, :size] - centre[:, None, None]
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        body = (u / length) ** 2 + (v / width) ** 2 < 1
        head = np.hypot(u - length, v) < 0.7 * width
        animal = body | head
        if not mask[animal].any():
            break
    else:
        return
    hue = label / len(CLASS_NAMES) + rng.normal(0, _HUE_SPREAD)
    fur = _rgb(hue, saturation=0.45, value=rng.uniform(0.5, 0.8)) * (1 + 0.2 * _noise(rng, size, 3))[..., None]
    pattern = _PATTERNS[CLASS_NAMES[label]](u - length, v)[..., None]
    face = np.where(pattern, rng.uniform(0.8, 1.0), rng.uniform(0.0, 0.2)) * np.ones(3)
    image[body], image[head] = fur[body], face[head]
    mask[animal] = label + 1
    parts[body], parts[head] = BODY, HEAD


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    colours = [_rgb(rng.uniform(), saturation=rng.uniform(0.1, 0.5), value=rng.uniform(0.3, 0.8)) for _ in range(2)]
    mix = 1 / (1 + np.exp(-3 * _noise(rng, size, size / 6)))[..., None]
    ground: np.ndarray = (mix * colours[0] + (1 - mix) * colours[1]) * (1 + 0.15 * _noise(rng, size, 3))[..., None]
    return ground


def _noise(rng: np.random.Generator, size: int, grain: float) -> Grid:
    """Return smooth noise ``(S, S)`` of unit variance with a grain of about ``grain`` pixels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * np.exp(-((frequency * grain) ** 2) * 2)
    noise = np.fft.irfft2(spectrum, s=(size, size))
    unit: Grid = (noise - noise.mean()) / noise.std()
    return unit


def _rgb(hue: float, *, saturation: float, value: float) -> np.ndarray:
    """Return a colour ``(3,)``; the hue is in turns of the colour circle, modulo 1."""
    phase = 2 * np.pi * (hue - np.arange(3) / 3)
    colour: np.ndarray = value * (1 - saturation * (0.5 - 0.5 * np.cos(phase)))
    return colour
