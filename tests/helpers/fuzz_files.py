"""Sound files of every kind for the readers of `fuzz_readers`, and what is read of them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from advcam_attr.data.coco import DRAW, read_coco
from advcam_attr.data.cub import read_cub
from advcam_attr.data.imagenet import read_imagenet
from advcam_attr.data.images import image_size, read_rgb, read_stored_rgb
from advcam_attr.data.instances import write_instances
from advcam_attr.data.masks import PixelMasks, SaliencyFolder, png_settings, read_mask, read_pixel_truth, write_mask
from advcam_attr.data.shards import read_shards
from advcam_attr.networks.cam_net import CAMNetSpec
from advcam_attr.networks.checkpoint import load_weights, read_checkpoint
from advcam_attr.networks.net_file import _read_spec
from advcam_attr.networks.seam import SEAM
from advcam_attr.refine.seeds import GridMaps
from advcam_attr.runs.map_store import MapStore
from advcam_attr.tensor_files import DIGEST
from advcam_attr.types import Instances, Sample
from fuzz_run import Layer
from tiny_coco import annotated, box, write_coco
from tiny_wsol import LISTS, annotation, write_lists

Files = dict[str, bytes]


def files_of(make: Callable[[Path], object]) -> Files:
    """Return the files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make(root)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


GRADIENT = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
RGB = np.stack([GRADIENT, GRADIENT.T.reshape(5, 7), GRADIENT], -1)


def images() -> list[Files]:
    rgb, grey = Image.fromarray(RGB), Image.fromarray(GRADIENT)
    turned = Image.Exif()
    turned[274] = 6
    wide = Image.fromarray(GRADIENT.astype(np.uint16) * 200)
    made = [
        *(encoded(rgb, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")),
        encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb, "JPEG", exif=turned, progressive=True),
        encoded(grey, "PNG", icc_profile=b"x" * 200), encoded(rgb.convert("RGBA"), "PNG"), encoded(wide, "PNG"),
        encoded(rgb.convert("P"), "PNG", transparency=3), encoded(grey.convert("1"), "PNG"),
        encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), encoded(rgb.crop((0, 0, 1, 1)), "PNG"),
        encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]), encoded(rgb.convert("LA"), "PNG"),
        encoded(rgb, "TIFF", compression="tiff_lzw"), encoded(rgb, "TIFF", compression="jpeg"),
    ]  # fmt: skip
    return [{"image": content} for content in made]


def read_image(folder: Path) -> None:
    image_size(folder / "image")
    read_rgb(folder / "image")
    read_stored_rgb(folder / "image")


def masks() -> list[Files]:
    labels = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    grey = encoded(Image.fromarray(labels.numpy()), "PNG")
    own = files_of(lambda root: write_mask(root / "mask.png", labels, "0" * 16))
    return [
        own,
        {"mask.png": grey},
        {"mask.png": encoded(Image.open(io.BytesIO(own["mask.png"])).convert("RGB"), "PNG")},
    ]


def read_masks(folder: Path) -> None:
    png_settings(folder / "mask.png")
    read_mask(folder / "mask.png", 20)
    read_pixel_truth(PixelMasks((folder / "mask.png",), None))


def mat_files() -> list[Files]:
    from scipy.io import savemat

    made = []
    for packed in (True, False):
        content = io.BytesIO()
        segmentation = (GRADIENT % 20).astype(np.uint8)
        savemat(content, {"GTcls": {"Segmentation": segmentation, "CategoriesPresent": [1, 2]}}, do_compression=packed)
        made.append({"mask.mat": content.getvalue()})
    return made


def png_parts(content: bytes) -> list[bytes]:
    parts, place = [content[:8]], 8
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        parts.append(content[place + 4 : place + 8 + size])
        place += 12 + size
    return parts


def png_of(parts: Sequence[bytes]) -> bytes:
    chunks = (struct.pack(">I", max(0, len(p) - 4)) + p + struct.pack(">I", zlib.crc32(p)) for p in parts[1:])
    return parts[0] + b"".join(chunks)


PNG = Layer(
    lambda c: png_parts(c) if c[1:4] == b"PNG" else [c, b"-"], lambda p: png_of(p) if p[0][1:4] == b"PNG" else p[0]
)


def saliency_maps() -> list[Files]:
    return [{"a.png": encoded(Image.fromarray(GRADIENT), kind)} for kind in ("PNG", "JPEG")]


def label_scores() -> list[Files]:
    return [{"a.png": encoded(Image.fromarray(np.tile(GRADIENT, (2, 1))), "PNG")}]


def read_saliency(folder: Path) -> None:
    SaliencyFolder(folder)(Sample("a", folder / "a.jpg", ()), (5, 7))


def instance_files() -> list[Files]:
    found = Instances((2, 0), torch.eye(2, dtype=torch.bool)[:, None].expand(2, 3, 2), (0.5, 1.0))
    return [files_of(lambda root: write_instances(root / "a.png", found))]


VOC = (
    b"<annotation><folder>VOC2012</folder><size><width>5</width><height>4</height></size><object><name>cat</name>"
    b"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object><object><name>dog</name>"
    b"<part><name>head</name></part></object></annotation>"
)

COCO_SHAPES = (
    box(1, 1, 9, 9), {"size": [12, 16], "counts": [10, 5, 177]}, {"size": [12, 16], "counts": ":5a5"},
    box(3, 2, 16, 12),
)  # fmt: skip


def coco() -> list[Files]:
    shapes = [
        annotated(9 if n else 25, (1, 13, 90, 1)[n], [s] if type(s) is list else s, n % 2)
        for n, s in enumerate(COCO_SHAPES)
    ]
    return [files_of(lambda root: write_coco(root, shapes))]


def read_all_coco(folder: Path) -> None:
    data = read_coco(folder, masks=DRAW)
    for sample in data.samples:
        data.mask(sample)
        data.instances(sample)


def imagenet(root: Path) -> None:
    for synset in ("n00000001", "n00000002"):
        annotation(root / "bbox" / "val" / f"{synset}_1.xml", synset, [(1, 2, 9, 8), (0, 0, 19, 9)])
        (root / "val" / synset).mkdir(parents=True)
        Image.fromarray(RGB).resize((20, 10)).save(root / "val" / synset / f"{synset}_1.JPEG")
    (root / "LOC_synset_mapping.txt").write_text("n00000001 tench, Tinca\nn00000002 goldfish\n")
    (root / "boxes.txt").write_text("".join(f"n0000000{n}/n0000000{n}_1.JPEG,1,2,3,4\n" for n in (1, 2)))


IMAGENET_LISTS = ("LOC_synset_mapping.txt", "boxes.txt")


def box_files() -> list[Files]:
    return [{"a.xml": files_of(imagenet)["bbox/val/n00000001_1.xml"]}]


LINES = [
    {"a.txt": b"2007_000032\n2007_000039\n"},
    {"a.txt": b"/JPEGImages/a.jpg /Masks/a.png\n/JPEGImages/b.jpg /Masks/b.png\n"},
]

CUB_LISTS = tuple(f"CUB_200_2011/{name}.txt" for name in ("images", "image_class_labels", "train_test_split",
                                                          "bounding_boxes", "classes"))  # fmt: skip


def read_both_splits(folder: Path) -> None:
    for split in ("train", "test"):
        read_cub(folder, split)


def read_both_imagenets(folder: Path) -> None:
    read_imagenet(folder, boxes=folder / "boxes.txt")
    read_imagenet(folder)


def npy(*contents: object) -> list[Files]:
    made = []
    for content in contents:
        stream = io.BytesIO()
        np.save(stream, content)
        made.append({"a.npy": stream.getvalue()})
    return made


TABLE = {2007000032: np.eye(3, dtype=np.float32)[0], "2007_000039": np.ones(3)}
IRN = {"keys": torch.tensor([1, 4]), "cam": torch.rand(2, 2, 2), "high_res": np.ones((2, 8, 5), np.float32)}
PSA = {1: np.ones((8, 5), np.float32), 4: np.zeros((8, 5), np.float32)}
ARRAYS = (GRADIENT, RGB.T, np.array(["a", "bc"]), {"x": [TABLE, PSA]})
LISTS_FILES = files_of(lambda root: write_lists(root / "val", LISTS))


def shard_parts(content: bytes) -> list[bytes]:
    return [content[place : place + 512] for place in range(0, len(content), 512)]


def shard_of(parts: Sequence[bytes]) -> bytes:
    """Blocks with the checksums of tar headers put right."""
    blocks = []
    for part in parts:
        block = bytearray(part.ljust(512, b"\0")[:512])
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        blocks.append(bytes(block))
    return b"".join(blocks)


def tar(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name, member in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(member)
            archive.addfile(about, io.BytesIO(member))
    return content.getvalue()


PICTURE = encoded(Image.fromarray(RGB), "PNG")
SHARDS = [
    {"0.tar": tar({"0.jpg": PICTURE, "0.cls": b"1", f"{'a' * 120}.png": PICTURE, f"{'a' * 120}.cls": b"2"}, form)}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)[:2]
]


def read_a_shard(folder: Path) -> None:
    data = read_shards(folder, classes=3)
    for index in range(len(data)):
        data.read(index)


def submission() -> list[Files]:
    mask = masks()[0]["mask.png"]
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    packed = tar({f"{folder}/2008_000001.png": mask, f"{folder}/2008_000002.png": mask})
    return [{"a.tgz": gzip.compress(packed, mtime=0)}]


TAR = Layer(shard_parts, shard_of)
TGZ = Layer(lambda c: shard_parts(gzip.decompress(c)), lambda p: gzip.compress(shard_of(p), 1, mtime=0))


def tensor_parts(content: bytes) -> list[bytes]:
    """Header and numbers of a safetensors file, without the digest."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.get("__metadata__", {}).pop(DIGEST, None)
    return [json.dumps(header).encode(), content[8 + size :]]


SAFETENSORS = Layer(tensor_parts, lambda parts: len(parts[0]).to_bytes(8, "little") + parts[0] + parts[1])


def maps(root: Path) -> None:
    store = MapStore(root)
    store.write("grids", GridMaps((1, 7), (8, 5), (torch.rand(2, 2, 2), torch.rand(2, 3, 2))))
    store.write("none", GridMaps((), (8, 5), ()))
    MapStore(root, settings="1").write("ready", store.read("grids"))


def read_maps(folder: Path) -> None:
    store = MapStore(folder)
    for id in store.ids():
        store.header(id)
        store.read(id)


WEIGHTS = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}
SPEC = {"backbone": {"name": "timm/test_resnet", "mean": [0.5] * 3, "std": [0.2] * 3}, "num_classes": 2}
NOTES = {"cam_net": json.dumps(SPEC), "classes": '["a", "b"]', "mean": "0.5 0.5 0.5", "std": "1"}


def torch_file(content: object, zipped: bool) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torch_files() -> list[Files]:
    contents = (WEIGHTS, {"state_dict": WEIGHTS, "epoch": 3})
    return [{"a.pt": torch_file(content, zipped)} for zipped in (True, False) for content in contents]


def generator() -> list[Files]:
    return [{"a.safetensors": save(SEAM(1, 1).state_dict())}]


def zip_parts(content: bytes) -> list[bytes]:
    if content[:2] != b"PK":
        return [content]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [part for name in archive.namelist() for part in (name.encode(), archive.read(name))]


def zip_of(parts: Sequence[bytes]) -> bytes:
    if len(parts) == 1:
        return parts[0]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, part in zip(parts[::2], parts[1::2], strict=True):
            archive.writestr(name.decode("latin1").strip("\0") or "x", part)
    return content.getvalue()


ZIP = Layer(zip_parts, zip_of)


def read_weights(folder: Path) -> None:
    for path in folder.iterdir():
        load_weights(torch.nn.Sequential(torch.nn.Linear(3, 2)), read_checkpoint(path), "net")


def read_net(folder: Path) -> None:
    checkpoint = read_checkpoint(folder / "net.safetensors")
    _read_spec(checkpoint, CAMNetSpec)
