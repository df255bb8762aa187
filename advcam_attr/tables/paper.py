"""The segmentation numbers of the paper's tables, in percent, by table and method; None where it gives none.

Source: Lee et al., "Anti-Adversarially Manipulated Attributions for Weakly Supervised Semantic Segmentation and Object
Localization", IEEE TPAMI 2022. Of Table II the differences alone are known for certain, of Table IX no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Numbers of a row of a table, in percent.
Numbers = tuple[float | None, ...]

#: Table I, mean IoU on PASCAL VOC train: seeds, seeds refined by a CRF, pseudo masks.
TABLE_I: Mapping[str, Numbers] = MappingProxyType(
    {
        "PSA": (48.0, None, 61.0),
        "Chang et al.": (50.9, 55.3, 63.4),
        "SEAM": (55.4, 56.8, 63.6),
        "IRN": (48.8, 54.3, 66.3),
        "AdvCAM": (55.6, 62.1, 69.9),
        "AdvCAM, masks by PSA": (None, None, 68.0),
        "EPS": (None, None, 71.6),
        "AdvCAM-Sal": (60.8, 66.6, 72.3),
    }
)

#: Table II, mean IoU on MS COCO train: how much higher AdvCAM's seeds and pseudo masks are than IRN's.
TABLE_II_GAIN: tuple[float, float] = (3.7, 3.1)

#: Table III, mean IoU on PASCAL VOC val and test of DeepLab-v2 with ResNet-101.
TABLE_III: Mapping[str, Numbers] = MappingProxyType(
    {
        "IRN": (63.5, 64.8),
        "AdvCAM": (68.1, 68.0),
        "AdvCAM-Sal": (71.3, 71.2),
    }
)

#: Table IV, the same with Res2Net backbones.
TABLE_IV: Mapping[str, Numbers] = MappingProxyType(
    {
        "AdvCAM-Sal, Res2Net-101": (72.0, 72.7),
        "AdvCAM-Sal, Res2Net-152": (73.0, 72.7),
    }
)

#: Table V, mean IoU on MS COCO val of DeepLab-v2.
TABLE_V: Mapping[str, Numbers] = MappingProxyType({"IRN": (41.4,), "AdvCAM": (44.4,)})

#: Table VI, mean IoU on PASCAL VOC val and test of nets that learn from 1464 true masks and 9118 other images.
TABLE_VI: Mapping[str, Numbers] = MappingProxyType(
    {
        "CCT": (73.2, None),
        "CCT with AdvCAM's masks": (77.8, 76.9),
    }
)

#: Table XI, design of the final map on PASCAL VOC train: mean IoU, precision, recall, F1 of the means.
TABLE_XI: Mapping[str, Numbers] = MappingProxyType(
    {
        "last map only": (54.0, 64.4, 78.2, 70.6),
        "sum over t": (55.6, 66.9, 77.6, 71.9),
    }
)

#: Table XIII, seeds on MS COCO train: precision, recall, mean F1 of all classes, the 10 smallest and the 10 largest.
TABLE_XIII: Mapping[str, Numbers] = MappingProxyType(
    {
        "CAM": (44.5, 61.6, 47.6, 11.5, 73.0, 19.2, 69.3, 60.4, 63.5),
        "AdvCAM, T=10, τ=0.5": (46.7, 63.8, 50.6, 14.8, 69.7, 23.8, 70.9, 63.9, 65.6),
        "AdvCAM, T=20, τ=0.5": (47.1, 64.7, 51.3, 16.5, 67.4, 25.4, 70.9, 66.0, 66.5),
        "AdvCAM, T=30, τ=0.5": (48.1, 63.6, 51.6, 18.5, 64.9, 27.2, 71.4, 65.7, 66.7),
        "AdvCAM, T=30, τ=0.4": (48.0, 63.6, 51.4, 17.1, 66.6, 26.1, 71.5, 64.9, 66.3),
        "AdvCAM, T=30, τ=0.6": (47.7, 63.7, 51.4, 19.2, 64.3, 28.1, 71.2, 66.1, 66.5),
    }
)
