"""The picture of the first page: what CAM and AdvCAM find in toy scenes; ``python docs/pictures.py`` draws it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from advcam_attr import CAM, AdvCAM
from advcam_attr.data.toy import CLASS_NAMES, ToyScenes, make_scenes
from advcam_attr.metrics.segmentation import ConfusionMatrix
from advcam_attr.pipelines.demo import DEMO_THRESHOLDS, class_maps, label_maps, train_net
from advcam_attr.viz.overlay import heat_over, labels_over, panels


def main() -> None:
    """Write ``images/hero.png``: the first scenes of a test set, none left out."""
    torch.set_num_threads(1)
    model = train_net(make_scenes(600, seed=0), epochs=12)
    validation, test = make_scenes(60, seed=1), make_scenes(120, seed=2)
    methods = {"CAM": CAM(model), "AdvCAM": AdvCAM(model)}
    maps, thresholds = {}, {}
    for name, method in methods.items():
        scores = {t: _score(class_maps(method, validation), validation, t) for t in DEMO_THRESHOLDS}
        thresholds[name] = max(scores, key=lambda t: scores[t])
        maps[name] = class_maps(method, test)
        print(f"{name}: {100 * _score(maps[name], test, thresholds[name]):.1f} % mean IoU at {thresholds[name]:.2f}")
    rows, captions = [], []
    for n in range(3):
        picture, kinds = test.images[n].permute(1, 2, 0).numpy(), test.labels[n].nonzero()[:, 0].tolist()
        row = [picture, labels_over(picture, test.masks[n].numpy())]
        for name in methods:
            found = label_maps(maps[name][n : n + 1], thresholds[name])[0]
            row += [heat_over(picture, maps[name][n].amax(0).numpy()), labels_over(picture, found.numpy())]
        rows.append(row)
        captions.append(", ".join(CLASS_NAMES[k] for k in kinds))
    titles = ["image", "truth", "CAM", "CAM, cut", "AdvCAM", "AdvCAM, cut"]
    picture = panels(rows, titles, captions, cell=144).quantize(128, dither=Image.Dither.NONE)
    picture.save(Path(__file__).parent / "images" / "hero.png", optimize=True)


def _score(maps: torch.Tensor, scenes: ToyScenes, threshold: float) -> float:
    matrix = ConfusionMatrix(len(CLASS_NAMES) + 1)
    matrix.update(label_maps(maps, threshold), scenes.masks)
    return matrix.mean_iou()


if __name__ == "__main__":
    main()
