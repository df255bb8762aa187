"""Loading classifiers by name: weights, preprocessing, class names and errors."""

from __future__ import annotations

import os
import pickle

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from advcam_attr.data.images import expand_images, read_rgb
from advcam_attr.networks import sources
from advcam_attr.networks.load import load_model
from advcam_attr.types import AdvCAMError

NET = "torchvision/squeezenet1_1"
SMALL = "timm/test_resnet"


@pytest.fixture(scope="module")
def weights():
    return load_model(SMALL, random_weights=True).model.state_dict()


def message_of(*args, **kwargs) -> str:
    with pytest.raises(AdvCAMError) as caught:
        load_model(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's, importable from the working directory only."""
    (tmp_path / "users_nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def plain(classes=3):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
        "def dressed():\n"
        "    net = plain(2)\n"
        "    net.preprocess = lambda image: torch.full((3, 5, 7), image.size[0] / 100)\n"
        "    net.class_names = ['cat', 'dog']\n"
        "    return net\n"
        "def configured():\n"
        "    net = plain()\n"
        "    net.pretrained_cfg = {'input_size': (3, 40, 40), 'mean': (0.1,) * 3, 'std': (0.2,) * 3}\n"
        "    return net\n"
        "def text():\n"
        "    return 'net'\n"
        "number = 3\n"
    )
    (tmp_path / "broken_nets.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    return "users_nets"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("resnet50", {}, "timm/resnet50 or torchvision/resnet50"),
        ("resnett50", {}, "did you mean timm/"),
        ("qwertz", {}, "timm/NAME, torchvision/NAME and package.module:factory"),
        ("timm/resnett50", {}, "'resnet50'"),
        ("torchvision/squeezenet11", {}, "'squeezenet1_1'"),
        ("timm/resnet50.a1in1k", {}, "resnet50.a1_in1k"),
        ("timm/beit3_giant_patch14_224", {}, "no pretrained weights"),
        (SMALL, {"model_args": {"num_classes": 3}}, "1000 classes: with num_classes=3"),
        (NET, {"model_args": {"num_classes": 3}}, "1000 classes: with num_classes=3"),
        (SMALL, {"checkpoint": "x.pth", "random_weights": True}, "exclude each other"),
        (SMALL, {"model_args": {"nclasses": 3}, "random_weights": True}, "does not take the arguments {'nclasses': 3}"),
        (NET, {"model_args": {"nclasses": 3}, "random_weights": True}, "does not take the arguments"),
        (SMALL, {"model_args": {"in_chans": 1}, "random_weights": True}, "takes images of 1 channels"),
        (SMALL, {"mean": [0.1, 0.2], "random_weights": True}, "one or three finite numbers"),
        (SMALL, {"input_size": 100_000, "random_weights": True}, "100000 x 100000 pixels is too large"),
        (SMALL, {"std": [0], "random_weights": True}, "positive numbers, got 0"),
        (SMALL, {"input_size": 0, "random_weights": True}, "must be positive, got 0"),
    ],
)
def test_bad_names_and_options(spec, options, message):
    assert message in message_of(spec, **options)


def test_timm_model_has_its_own_preprocessing_and_names():
    loaded = load_model("timm/mobilenetv2_100", random_weights=True)
    assert not loaded.model.training
    assert loaded.preprocessing.size == (224, 224)
    assert loaded.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.class_names is not None
    assert loaded.class_names[1].startswith("goldfish")
    assert loaded.weights == "random"
    assert load_model("timm/vit_tiny_patch16_224", random_weights=True).fixed_size


def test_torchvision_model_has_its_own_preprocessing_and_names():
    loaded = load_model("torchvision/inception_v3", random_weights=True)
    assert loaded.preprocessing.size == (299, 299)
    assert loaded.class_names is not None
    assert loaded.class_names[1] == "goldfish"
    assert loaded.preprocess(Image.new("RGB", (500, 400))).shape == (3, 299, 299)
    assert load_model(NET, random_weights=True, model_args={"num_classes": 7}).class_names is None


def test_a_thousand_and_one_classes_begin_with_background():
    names = load_model("timm/mobilenetv2_100", random_weights=True, model_args={"num_classes": 1001}).class_names
    assert names is not None
    assert names[0] == "background"
    assert names[2].startswith("goldfish")
    assert len(names) == 1001


def test_input_size_and_normalization_can_be_changed():
    loaded = load_model(SMALL, random_weights=True, input_size=96, mean=[0.5], std=[0.25, 0.5, 0.75])
    x = loaded.preprocess(Image.new("RGB", (200, 100), (255, 255, 255)))
    assert x.shape == (3, 96, 96)
    torch.testing.assert_close(x[:, 5, 5], torch.tensor([2.0, 1.0, 2 / 3]))
    assert load_model("timm/vit_tiny_patch16_224", random_weights=True, input_size=64).preprocessing.size == (64, 64)
    assert load_model(NET, random_weights=True, input_size=100, std=[0.5]).preprocessing.size == (100, 100)


def test_display_inverts_the_normalization():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    loaded = load_model(NET, random_weights=True, input_size=224)
    own = loaded.preprocess(picture.resize((256, 256)))
    assert own.min() < 0
    shown = loaded.display(own[None])[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.preprocessing.mean, loaded.preprocessing.std))
    torch.testing.assert_close((shown - mean) / std, own, rtol=0, atol=1e-5)


def test_a_factory_of_the_working_directory(module):
    loaded = load_model(f"{module}:plain", model_args={"classes": 5})
    assert loaded.weights == "factory"
    assert loaded.model(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert loaded.preprocess(Image.new("L", (300, 200)).convert("RGB")).shape == (3, 224, 224)
    again = load_model(f"{module}:plain", model_args={"classes": 5})
    assert torch.equal(loaded.model[0].weight, again.model[0].weight)
    assert load_model(f"{module}:configured").preprocessing.size == (40, 40)
    assert load_model(f"{module}:configured").preprocessing.mean == (0.1, 0.1, 0.1)


def test_a_factory_may_bring_preprocessing_and_names(module):
    loaded = load_model(f"{module}:dressed")
    assert loaded.class_names == ("cat", "dog")
    assert loaded.preprocess(Image.new("RGB", (50, 9))).shape == (3, 5, 7)
    shown = loaded.display(torch.arange(105.0).reshape(3, 5, 7))
    assert (shown.min(), shown.max()) == (0, 1)
    assert "has its own preprocess" in message_of(f"{module}:dressed", mean=[0.5])


def test_factories_that_are_none(module):
    assert "did you mean 'plain'" in message_of(f"{module}:plan")
    assert "no module named 'users_net'" in message_of("users_net:plain")
    assert "is a int; a function" in message_of(f"{module}:number")
    assert "returned str; a torch.nn.Module is needed" in message_of(f"{module}:text")
    assert "does not take the arguments {'k': 1}" in message_of(f"{module}:plain", model_args={"k": 1})
    assert "a factory makes its own" in message_of(f"{module}:plain", random_weights=True)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        load_model("broken_nets:net")


def test_random_weights_are_reproducible():
    state = torch.get_rng_state()
    first, second = (load_model(SMALL, random_weights=True).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("spec", [SMALL, NET])
def test_no_network_is_one_line(spec, monkeypatch):
    monkeypatch.setattr(sources, "_answers", lambda url: False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/no/such/folder")
    message = message_of(spec)
    assert "--checkpoint" in message
    assert "--random-weights" in message


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "nested", "parallel", "compiled", "half"])
def test_checkpoints_of_all_wrappings(tmp_path, weights, wrap):
    wanted = {key: value + 0.5 if value.is_floating_point() else value for key, value in weights.items()}
    content = {
        "plain": wanted,
        "state_dict": {"state_dict": wanted, "epoch": 3},
        "model": {"model": wanted, "optimizer": {"lr": 0.1}},
        "nested": {"model": {"state_dict": wanted}},
        "parallel": {f"module.{key}": value for key, value in wanted.items()},
        "compiled": {"model": {f"module._orig_mod.{key}": value for key, value in wanted.items()}},
        "half": {key: value.half() if value.is_floating_point() else value for key, value in wanted.items()},
    }[wrap]
    torch.save(content, tmp_path / "weights.pth")
    loaded = load_model(SMALL, checkpoint=tmp_path / "weights.pth")
    assert loaded.weights == str(tmp_path / "weights.pth")
    for key, value in loaded.model.state_dict().items():
        assert value.dtype == weights[key].dtype
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-3)


def test_safetensors_metadata_give_the_normalization(tmp_path, weights):
    notes = {"mean": "0.5 0.5 0.5", "std": "0.25"}
    save_file(dict(weights), tmp_path / "weights.safetensors", metadata=notes)
    loaded = load_model(SMALL, checkpoint=tmp_path / "weights.safetensors")
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.preprocessing.std == (0.25, 0.25, 0.25)
    assert load_model(SMALL, checkpoint=tmp_path / "weights.safetensors", mean=[0.1]).preprocessing.mean == (0.1,) * 3
    save_file(dict(weights), tmp_path / "odd.safetensors", metadata={"mean": "unknown"})
    own = load_model(SMALL, random_weights=True).preprocessing.mean
    assert load_model(SMALL, checkpoint=tmp_path / "odd.safetensors").preprocessing.mean == own


def test_missing_and_unexpected_keys_are_listed(tmp_path, weights):
    some = dict(list(weights.items())[7:])
    save_file({**some, "extra.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    message = message_of(SMALL, checkpoint=tmp_path / "other.safetensors")
    missing = [key for key in list(weights)[:7] if not key.endswith("num_batches_tracked")]
    assert f"{len(missing)} missing keys ({', '.join(missing[:3])}, ...)" in message
    assert "1 unexpected keys (extra.weight)" in message
    assert "other.safetensors does not fit" in message


def test_counters_may_be_missing(tmp_path, weights):
    save_file({k: v for k, v in weights.items() if "num_batches" not in k}, tmp_path / "old.safetensors")
    load_model(SMALL, checkpoint=tmp_path / "old.safetensors")


def test_other_shapes_are_named_and_classes_explained(tmp_path):
    other = load_model(SMALL, random_weights=True, model_args={"num_classes": 12}).model.state_dict()
    save_file(other, tmp_path / "twelve.safetensors")
    message = message_of(SMALL, checkpoint=tmp_path / "twelve.safetensors")
    assert "fc.weight (12, " in message
    assert """--model-args '{"num_classes": 12}'""" in message


def test_nan_weights_raise(tmp_path, weights, module):
    key = next(iter(weights))
    save_file({**weights, key: torch.full_like(weights[key], torch.nan)}, tmp_path / "nan.safetensors")
    assert f"NaN or infinite weights in {key}" in message_of(SMALL, checkpoint=tmp_path / "nan.safetensors")
    (tmp_path / "nan_nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    net = nn.Linear(2, 2)\n"
        "    nn.init.constant_(net.bias, float('inf'))\n"
        "    return net\n"
    )
    assert "NaN or infinite weights, first in bias" in message_of("nan_nets:net")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_pickles_of_more_than_weights_raise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, "harmful.pth")
    torch.save(nn.Linear(2, 2), "module.pth")
    with open("harmful.pkl", "wb") as file:
        pickle.dump(Harmful(), file)
    for name in ("harmful.pth", "module.pth", "harmful.pkl"):
        message = message_of(SMALL, checkpoint=name)
        assert f"checkpoint {name} is rejected: it is a pickle of more than plain weights" in message
    assert not (tmp_path / "harm").exists()


def test_damaged_checkpoints_raise(tmp_path, weights):
    torch.save(dict(weights), tmp_path / "cut.pth")
    save_file(dict(weights), tmp_path / "cut.safetensors")
    for name in ("cut.pth", "cut.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        message = message_of(SMALL, checkpoint=tmp_path / name)
        assert str(tmp_path / name) in message
        assert "cannot read" in message or "is damaged" in message
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    for name in ("text.pth", "empty.pth"):
        assert f"checkpoint {tmp_path / name}" in message_of(SMALL, checkpoint=tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "holds no weights" in message_of(SMALL, checkpoint=tmp_path / "none.pth")
    assert "no such checkpoint file" in message_of(SMALL, checkpoint=tmp_path / "missing.pth")


def test_label_files(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("red panda\nbär\n\n", encoding="utf-8")
    options = {"random_weights": True, "labels": file}
    assert load_model(SMALL, model_args={"num_classes": 2}, **options).class_names == ("red panda", "bär")
    assert "2 names, but timm/test_resnet has 1000 classes" in message_of(SMALL, **options)
    file.write_text("a\n\nb\n")
    assert "line 2 of label file" in message_of(SMALL, **options)
    file.write_text("")
    assert "is empty" in message_of(SMALL, **options)
    file.write_bytes(b"\xff\xfe\xfa")
    assert "no UTF-8" in message_of(SMALL, **options)
    file.unlink()
    assert "no such label file" in message_of(SMALL, **options)


@pytest.mark.parametrize(
    ("spec", "args", "file", "offset", "least"),
    [
        ("timm/mobilenetv2_100", {"num_classes": 1001, "pad_type": "same"}, "mobilenetv2_100_imagenet", 1, 0.80),
        ("torchvision/squeezenet1_1", {}, "squeezenet1_1_imagenet", 0, 0.45),
    ],
)
def test_real_weights_know_real_photographs(data_root, spec, args, file, offset, least):
    """Top-1 on 100 photographs is 87 % and 58 %; every third is tried here."""
    loaded = load_model(spec, model_args=args, checkpoint=data_root / "weights" / f"{file}.safetensors")
    synsets = [line.split()[0] for line in (data_root / "imagenet/LOC_synset_mapping.txt").read_text().splitlines()]
    images = expand_images([data_root / "imagenet" / "val"])[::3]
    x = torch.stack([loaded.preprocess(read_rgb(image)) for image in images])
    with torch.no_grad():
        guesses = loaded.model(x).argmax(1) - offset
    truth = torch.tensor([synsets.index(image.parent.name) for image in images])
    assert (guesses == truth).float().mean() >= least


def test_real_birds_have_their_names(data_root):
    folder = data_root / "weights"
    loaded = load_model(
        "timm/mobilenetv2_100",
        model_args={"num_classes": 965, "pad_type": "same"},
        checkpoint=folder / "mobilenetv2_100_inat_birds.safetensors",
        labels=folder / "inat_birds_labels.txt",
    )
    assert loaded.class_names is not None
    assert loaded.class_names[-1] == "background"
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
