"""Files name models and classes: none of them is imported unless the command line or the user's code trusts it."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from advcam_attr.cli import main as cli
from advcam_attr.cli import semi, wsol, wsss
from advcam_attr.networks.affinitynet import AFFINITY_NET
from advcam_attr.networks.cam_net import CAM_NET
from advcam_attr.networks.cct import CCT_NET
from advcam_attr.networks.deeplab import DEEPLAB
from advcam_attr.networks.irnet import IRNET
from advcam_attr.networks.load import load_configured, load_model
from advcam_attr.networks.net_file import load_net
from advcam_attr.networks.trust import UntrustedFactoryError, trusted_factories
from advcam_attr.networks.wsol import WSOL_NET
from advcam_attr.types import AdvCAMError
from places import ROOT
from tiny_wsol import write_cub

SPY = """
from pathlib import Path
Path("imported").touch()
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
class Other:
    pass
make, system = (lambda: Net()), __import__("os").system
"""

KINDS = [CAM_NET, WSOL_NET, DEEPLAB, CCT_NET, IRNET, AFFINITY_NET]
NAMES = ["spy_nets:make", "timm/local-dir:model", "timm/hf-hub:someone/model", "timm/hf_hub:someone/model"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working directory with a module whose import is seen, and a folder that timm would load a model from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "spy_nets.py").write_text(SPY)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 3}))
    yield tmp_path
    sys.modules.pop("spy_nets", None)


def write_net(path: Path, kind, name: str) -> Path:
    spec = {"backbone": {"name": name}, "num_classes": 3}
    save_file({"w": torch.zeros(1)}, path, {kind.spec.key: json.dumps(spec)})
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_configured_name_needs_trust(name, folder):
    with pytest.raises(UntrustedFactoryError, match=f"--trust-factory {name}"):
        load_configured(name, random_weights=True)
    assert not Path("imported").exists()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.spec.key)
@pytest.mark.parametrize("name", NAMES[:2])
def test_no_weights_file_imports_what_it_names(kind, name, folder):
    with pytest.raises(AdvCAMError):
        load_net(write_net(Path("net.safetensors"), kind, name), kind)
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("options", "stage", "values"),
    [
        (wsol, "maps", {"net": {"model": "spy_nets:make"}}),
        (wsol, "maps", {"net": {"checkpoint": "net.safetensors"}}),
        (wsol, "classifier", {"classifier": {"backbone": {"name": "spy_nets:make", "random_weights": True}}}),
        (wsol, "classifier", {"trainings": {"CAM": {"backbone": {"name": "spy_nets:make"}}}}),
        (wsol, "maps", {"net": "spy_nets.Net"}),
        (wsol, "maps", {"net": {"class_path": "spy_nets.Net"}}),
        (wsol, "maps", {"net": {"model": "timm/test_resnet", "model_args": {"a": {"class_path": "spy_nets.Net"}}}}),
        (wsol, "maps", {"net": '{"model": "t", "model_args": {"a": "{class\\u005fpath: spy_nets.Net}"}}'}),
        (wsol, "maps", {"maps": {"overrides": {"objective": [{"class_path": "spy_nets.Net"}]}}}),
        (wsss, "classifier", {"net": {"backbone": {"name": "spy_nets:make", "random_weights": True}}}),
        (wsss, "classifier", {"net": {"backbone": {"class_path": "spy_nets.Net"}}}),
        (semi, "train", {"net": {"backbone": {"name": "spy_nets:make", "random_weights": True}}}),
    ],
)
def test_no_configuration_imports_what_it_names(options, stage, values, folder, capsys):
    """Given by --config, and as the record of a run folder."""
    root = write_cub(folder)
    write_net(Path("net.safetensors"), WSOL_NET, "spy_nets:make")
    values = {"run": "run", "data": {"root": str(root)}, "runtime": {"workers": 0}, **values}
    Path("config.json").write_text(json.dumps(values))
    name = options.__name__.rpartition(".")[2]
    assert cli.main([name, stage, "--config", "config.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with contextlib.suppress(AdvCAMError):
        options.OPTIONS.read(Path("config.json"))
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "words", [["--trust-factory", "spy_nets:make"], ["--net.model=spy_nets:make"], ["--trust-factory=spy_nets:make"]]
)
def test_the_command_line_gives_trust(words, folder, capsys):
    root = write_cub(folder)
    values = {"run": "run", "data": {"root": str(root)}, "net": {"model": "spy_nets:make"}}
    values["maps"] = {"methods": ["cam"], "size": 32}
    Path("config.json").write_text(json.dumps(values))
    assert cli.main(["wsol", "maps", "--config", "config.json", "--runtime.workers", "0", *words]) == 0
    assert "reading spy_nets:make: factory" in capsys.readouterr().out


def test_code_gives_trust(folder):
    assert load_model("spy_nets:make").num_classes is None
    with trusted_factories("spy_nets:make"):
        assert load_configured("spy_nets:make").weights == "factory"
    with trusted_factories("spy_nets:make"), pytest.raises(UntrustedFactoryError):
        load_configured("spy_nets:Net")


@pytest.mark.parametrize("name", ["spy_nets:system", "spy_nets:Other", "os:system", "subprocess:Popen"])
def test_a_factory_is_a_function_or_a_module(name, folder):
    args = {"command": "touch ran", "args": ["touch", "ran"]}
    with pytest.raises(AdvCAMError, match="a function that returns"):
        load_model(name, model_args=args)
    assert not Path("ran").exists()


@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"])
def test_model_args_name_no_other_weights(argument):
    with pytest.raises(AdvCAMError, match=f"takes no {argument} here"):
        load_model("timm/test_resnet", model_args={argument: "x"}, random_weights=True)


def test_names_are_imported_in_known_places_only():
    """Whoever imports or loads by name must follow the rule: new places are added here after a look."""
    known = {
        ("__init__.py", "import_module"),  # names of this package
        ("cli/config_options.py", "import_module"),  # names of this package
        ("networks/sources.py", "import_module"),  # the factories
        ("networks/load.py", "load_model"),  # load_configured, which checks the name
        ("networks/resnet101.py", "load_model"),  # a constant
        ("pipelines/model.py", "load_model"),  # --model of the command line
    }
    calls = {"import_module", "__import__", "load_model", "eval", "exec", "import_object", "locate"}
    package, found = ROOT / "advcam_attr", set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in calls and not (name == "eval" and isinstance(node.func, ast.Attribute)):
                    found.add((path.relative_to(package).as_posix(), name))
    assert found == known
