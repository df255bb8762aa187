"""Gradient ascent on the class score: AdvCAM's loop, its parts and its recipes."""

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
    LinfStep,
    MapDrift,
    MarginGrowth,
    NoClamp,
    RawStep,
    RMSStep,
    SignStep,
)

__all__ = [
    "CLAMPS", "MASKS", "OBJECTIVES", "REGULARIZERS", "STEP_RULES", "STOPS",
    "CleanRange", "ClimbState", "ClippedStep", "CurrentRange", "RMSStep", "MarginGrowth", "LinfStep", "MapDrift",
    "NoClamp", "NoMask", "Plan", "RawStep", "RectifiedTargetMinusOthers", "RestrictHighAttributions", "SignStep",
    "Target", "TargetMinusOthers", "ThresholdMask", "Views", "climb",
]  # fmt: skip
