"""Published numbers of CRFs, random walks and affinity labels, which configurations read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from advcam_attr.types import AdvCAMError

#: Foreground and background thresholds of `advcam_attr.refine.affinity_labels.ir_label` by source; RIB's are for COCO.
LABEL_THRESHOLDS = {"irn": (0.30, 0.05), "advcam": (0.35, 0.15), "rib": (0.35, 0.17)}

#: The powers of PSA's background score: low for confident foreground, high for confident background.
ALPHAS = (4.0, 32.0)

#: Radius of IRN's pairs in training, in cells of the grid (IRN's code); the walk's is 5.
TRAINING_RADIUS = 10

#: Largest radius of neighbours: memory grows by its square, and at 32 cells each has 3000 neighbours.
LARGEST_RADIUS = 32


@dataclass(frozen=True)
class CRFRecipe:
    """The numbers of a dense CRF, with their source: lengths in pixels, colours from 0 to 255.

    Attributes:
        spatial_deviation: σ_xy of the spatial kernel, with weight ``spatial_weight``.
        bilateral_deviation: σ_xy of the bilateral kernel, with weight ``bilateral_weight``.
        color_deviation: σ_rgb of the bilateral kernel.
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


@dataclass(frozen=True)
class WalkRecipe:
    """The numbers of IRN's random walk and of the labels after it; those without another source are IRN's.

    Attributes:
        exponent: of the class maps before the walk: 1.5 in AdvCAM's code, 1 in IRN's, 1.3 in RIB's.
        background: the score of the background: 0.25 in IRN's and AdvCAM's code, 0.27 in RIB's (0.22 for COCO).
        radius: of neighbours, in cells; at most 32.
        beta: the power of affinities.
    """

    exponent: float = 1.5
    background: float = 0.25
    radius: int = 5
    beta: float = 10.0
    steps: int = 256

    def __post_init__(self) -> None:
        if not (self.exponent > 0 and self.beta > 0 and 0 <= self.background <= 1):
            raise AdvCAMError(f"walk: exponents must be positive, and the background's score in 0..1, got {self}")
        if self.radius < 2 or self.steps < 0:
            raise AdvCAMError(f"walk: the radius must be at least 2 and the steps not negative, got {self}")
        if self.radius > LARGEST_RADIUS:
            raise AdvCAMError(f"walk: the radius must be at most {LARGEST_RADIUS} cells, got {self.radius}; lower it")


@dataclass(frozen=True)
class InstanceRecipe:
    """The numbers of IRN's instance masks; the defaults are those of its code and of AdvCAM's.

    Attributes:
        iterations: steps of each cell along the displacements.
        threshold: length of displacements, in cells of 4 pixels, below which regions join their cells' clusters.
        smallest: share of the image; smaller instances have score 0.
        walk: the random walk of each instance's map, which is raised to no power.
    """

    iterations: int = 300
    threshold: float = 2.5
    smallest: float = 0.01
    walk: WalkRecipe = WalkRecipe(exponent=1.0)

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.threshold > 0 or not 0 <= self.smallest <= 1:
            raise AdvCAMError(
                "instances: iterations and the threshold must be positive, and the smallest share in 0..1, got "
                f"{self.iterations}, {self.threshold} and {self.smallest}"
            )
