"""OpenCV, which boxes and instances need."""

from __future__ import annotations

from types import ModuleType

from advcam_attr.types import AdvCAMError


def opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise AdvCAMError("boxes and instances need OpenCV: pip install opencv-contrib-python-headless") from error
    return cv2
