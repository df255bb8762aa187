"""The published numbers of dense CRFs, which configurations read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from advcam_attr.types import AdvCAMError


@dataclass(frozen=True)
class CRFRecipe:
    """The numbers of a dense CRF: lengths in pixels, colours from 0 to 255.

    Attributes:
        name: of the recipe.
        source: of its numbers.
        spatial_deviation: σ_xy of the spatial kernel.
        spatial_weight: its w.
        bilateral_deviation: σ_xy of the bilateral kernel.
        color_deviation: its σ_rgb.
        bilateral_weight: its w.
        iterations: of mean field.
    """

    name: str
    source: str
    spatial_deviation: float
    spatial_weight: float
    bilateral_deviation: float
    color_deviation: float
    bilateral_weight: float
    iterations: int = 10

    def __post_init__(self) -> None:
        if not min(self.spatial_deviation, self.bilateral_deviation, self.color_deviation) > 0 or self.iterations < 0:
            raise AdvCAMError(f"crf: deviations must be positive and iterations not negative, got {self}")


IRN = CRFRecipe("irn", "IRN's confident labels, from hard labels of confidence p = 0.7", 3, 3, 50, 5, 10)
PSA = CRFRecipe("psa", "PSA's and SEAM's low- and high-alpha labels, from scores", 3, 3, 80, 13, 10)
DEEPLAB = CRFRecipe(
    "deeplab",
    "deeplab-pytorch's test of VOC and COCO, from logits. It takes colours from the mean-subtracted image cast to 8 "
    "bits, which wraps around; here they are the image's own",
    1,
    3,
    67,
    3,
    4,
)
TABLE_1 = CRFRecipe(
    "table1",
    "the paper's Table I, column +CRF: the numbers of 'deeplab' on seeds at threshold 0.3 or 0.35 (the authors' answer "
    "in their issue 11). Unaries from hard labels, as in 'irn', are this package's choice: the paper states none",
    1,
    3,
    67,
    3,
    4,
)

CRF_RECIPES = {recipe.name: recipe for recipe in (IRN, PSA, DEEPLAB, TABLE_1)}
