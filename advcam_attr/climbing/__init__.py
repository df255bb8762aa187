"""Adversarial climbing: a classifier, images and classes in; a stream of `ClimbStep` out."""

from advcam_attr.climbing.loop import climb
from advcam_attr.climbing.masks import MASKS, NoMask, ThresholdMask
from advcam_attr.climbing.objective import OBJECTIVES, RectifiedTargetMinusOthers, Target, TargetMinusOthers
from advcam_attr.climbing.regularizers import REGULARIZERS, RestrictHighAttributions
from advcam_attr.climbing.state import ClimbState, Plan, Views
from advcam_attr.climbing.steps import (
    CLAMPS,
    STEP_RULES,
    CleanRange,
    ClippedStep,
    CurrentRange,
    L2Step,
    MaxNormStep,
    NoClamp,
    RawStep,
    SignStep,
)
from advcam_attr.climbing.stops import STOPS, MarginGrowth, never

__all__ = [
    "CLAMPS", "MASKS", "OBJECTIVES", "REGULARIZERS", "STEP_RULES", "STOPS",
    "CleanRange", "ClimbState", "ClippedStep", "CurrentRange", "L2Step", "MarginGrowth", "MaxNormStep", "NoClamp",
    "NoMask", "Plan", "RawStep", "RectifiedTargetMinusOthers", "RestrictHighAttributions", "SignStep", "Target",
    "TargetMinusOthers", "ThresholdMask", "Views", "climb", "never",
]  # fmt: skip
