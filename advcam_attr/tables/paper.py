"""The numbers of the paper's tables, in percent, by table and method; None where it gives none.

Source: Lee et al., "Anti-Adversarially Manipulated Attributions for Weakly Supervised Semantic Segmentation and Object
Localization", IEEE TPAMI 2022. Of Table II only the differences are known for certain, of Table IX no number.
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

#: Table VI, mean IoU on PASCAL VOC val and test of nets trained on 1464 true masks and 9118 other images.
TABLE_VI: Mapping[str, Numbers] = MappingProxyType(
    {
        "CCT": (73.2, None),
        "CCT with AdvCAM's masks": (77.8, 76.9),
    }
)

#: Table VII, ResNet-50: Top-1 Cls, Top-1 Loc, MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean, MaxBoxAccV2. The
#: rows down to Babar and Das are from earlier papers.
TABLE_VII: Mapping[str, Mapping[str, Numbers]] = MappingProxyType(
    {
        "CUB-200-2011": MappingProxyType(
            {
                "HaS": (69.7, None, 93.1, 72.2, 28.6, 64.6),
                "ACoL": (71.1, None, 97.0, 77.3, 25.0, 66.4),
                "SPG": (50.5, None, 92.2, 68.2, 20.8, 60.4),
                "ADL": (66.6, None, 91.8, 64.8, 18.4, 58.3),
                "Ki et al.": (80.4, 56.1, 96.2, 72.8, 20.6, 63.2),
                "Bae et al.": (75.0, 59.5, None, 77.6, None, None),
                "I2C": (None, 56.0, None, 72.6, None, None),
                "DGL": (None, 60.8, None, 74.7, None, None),
                "Babar and Das": (77.3, 64.7, None, 77.4, None, None),
                "CAM": (77.6, 58.0, 95.3, 71.5, 19.0, 61.9),
                "CAM + AdvCAM": (77.6, 63.7, 97.8, 80.5, 27.4, 68.6),
                "CutMix": (78.3, 57.6, 93.1, 70.8, 23.4, 62.4),
                "CutMix + AdvCAM": (78.3, 64.9, 97.3, 80.7, 32.5, 70.2),
            }
        ),
        "ImageNet-1K": MappingProxyType(
            {
                "HaS": (75.4, None, 83.7, 63.2, 41.3, 62.7),
                "ACoL": (73.1, None, 83.5, 64.4, 39.0, 62.3),
                "SPG": (73.3, None, 83.9, 65.4, 40.6, 63.3),
                "ADL": (71.2, None, 83.6, 65.6, 41.8, 63.7),
                "Ki et al.": (71.3, 48.4, 84.3, 67.6, 43.6, 65.2),
                "Bae et al.": (75.8, 49.4, None, 62.2, None, None),
                "I2C": (76.7, 54.8, None, 68.5, None, None),
                "DGL": (None, 53.4, None, 66.5, None, None),
                "Babar and Das": (None, 52.4, None, 67.9, None, None),
                "CAM": (75.5, 51.9, 83.9, 65.8, 41.5, 63.7),
                "CAM + AdvCAM": (75.5, 55.0, 86.5, 70.3, 47.4, 68.1),
                "CutMix": (77.9, 52.8, 84.6, 65.4, 41.6, 63.9),
                "CutMix + AdvCAM": (77.9, 54.8, 86.2, 68.4, 45.5, 66.7),
            }
        ),
    }
)

#: Table VIII, Inception-V3 on CUB-200-2011: MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean.
TABLE_VIII: Mapping[str, Numbers] = MappingProxyType(
    {
        "ADL": (93.8, 65.8, 16.9, 58.8),
        "DGL": (None, 67.6, None, None),
        "Ki et al.": (95.9, 67.9, 17.2, 60.3),
        "Bae et al.": (None, 70.0, None, None),
        "CALM": (None, None, None, 60.3),
        "IVR": (None, None, None, 61.7),
        "CutMix": (91.4, 62.2, 18.0, 57.2),
        "CutMix + AdvCAM": (95.5, 72.4, 28.2, 65.4),
    }
)

#: Table X, CutMix with ResNet-50 on CUB-200-2011: Top-1 Loc, MaxBoxAcc at IoU 0.3, 0.5 and 0.7, and their mean.
TABLE_X: Mapping[str, Numbers] = MappingProxyType(
    {
        "no climbing": (57.6, 93.1, 70.8, 23.4, 62.4),
        "climbing": (62.5, 98.0, 78.2, 26.4, 67.6),
        "climbing, regularized": (64.9, 97.3, 80.7, 32.5, 70.2),
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
