"""Adversarial climbing: a classifier, images and classes in; a stream of `ClimbStep` out."""

from advcam_attr.climbing.loop import climb
from advcam_attr.climbing.objective import OBJECTIVES, RectifiedTargetMinusOthers, Target, TargetMinusOthers
from advcam_attr.climbing.regularizers import MASKS, REGULARIZERS, NoMask, RestrictHighAttributions, ThresholdMask
from advcam_attr.climbing.state import ClimbState, Plan, Views
from advcam_attr.climbing.steps import (
    CLAMPS,
    STEP_RULES,
    STOPS,
    CleanRange,
    ClippedStep,
    CurrentRange,
    L2Step,
    MarginGrowth,
    MaxNormStep,
    NoClamp,
    RawStep,
    SignStep,
    never,
)

__all__ = [
    "CLAMPS", "MASKS", "OBJECTIVES", "REGULARIZERS", "STEP_RULES", "STOPS",
    "CleanRange", "ClimbState", "ClippedStep", "CurrentRange", "L2Step", "MarginGrowth", "MaxNormStep", "NoClamp",
    "NoMask", "Plan", "RawStep", "RectifiedTargetMinusOthers", "RestrictHighAttributions", "SignStep", "Target",
    "TargetMinusOthers", "ThresholdMask", "Views", "climb", "never",
]  # fmt: skip
