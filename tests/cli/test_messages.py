"""Errors of options and configuration files: one line that names option, value, what it takes, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from advcam_attr.cli import main as cli
from advcam_attr.cli.parser import UsageError, typed
from advcam_attr.pipelines.option_types import takes
from advcam_attr.types import AdvCAMError
from command_line import declared

ATTRIBUTE = ["attribute", "x.png", "--model", "timm/x"]
WSSS, WSOL = (["wsss", "run", "--run", "r", "--data.root", "x"], ["wsol", "run", "--run", "r", "--data.root", "x"])


def error_of(capsys, argv) -> str:
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("advcam: error: ").rstrip()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*ATTRIBUTE, "--steps", "q"], "--steps takes an integer; got 'q'"),
        ([*ATTRIBUTE, "--steps"], "--steps takes an integer; none is given"),
        ([*ATTRIBUTE, "--scales", "1", "a"], "--scales takes a list, each a number; got [1.0, 'a']"),
        ([*ATTRIBUTE, "--model-args", "{a"], "--model-args takes keys and values, as in '{key: 1}'; got '{a'"),
        ([*ATTRIBUTE, "--quiet=3"], "--quiet takes no value"),
        ([*ATTRIBUTE, "--probability", "sigmod"],
         "--probability takes one of softmax, sigmoid; got 'sigmod'; did you mean 'sigmoid'?"),
        ([*WSSS, "--classifier.epochs", "0"], "--classifier.epochs takes an integer above 0; got '0'"),
        ([*WSSS, "--classifier.long_side", "3"],
         "--classifier.long_side takes a list of 2 values, each an integer; got '3'"),
        ([*WSSS, "--runtime.autocast", "float17"],
         "--runtime.autocast takes one of bfloat16, float16, or null; got 'float17'; did you mean 'float16'"),
        ([*WSSS, "--refine.irn.foreground", "3"], "--refine.irn.foreground takes a number from 0 to 1; got '3'"),
        ([*WSSS, "--classifier", "3"],
         "--classifier is a section of values: give --classifier.KEY VALUE, or --config FILE"),
        ([*WSOL, "--net.stride", "q"], "--net.stride takes an integer or null; got 'q'"),
        ([*WSOL, "--net.strde", "8"], "--net has no 'strde'; did you mean 'stride'"),
        ([*WSOL, "--net", "os.system"], "--net takes a section of keys and values or null; got 'os.system'"),
        ([*WSOL, "--trainings", "{a: 3}"], "--trainings takes keys and values, each value keys and values"),
        ([*ATTRIBUTE, "--target_layers", "3"], "unknown option --target_layers; did you mean '--layer'?"),
        ([*ATTRIBUTE, "--output-dir", "3"], "unknown option --output-dir; did you mean '--out'?"),
        ([*ATTRIBUTE, "--gpu", "0"], "unknown option --gpu; did you mean '--device'?"),
        ([*WSSS, "--overwrite"], "unknown option --overwrite; did you mean '--runtime.overwrite'?"),
        ([*WSSS, "--num_workers", "3"], "unknown option --num_workers; did you mean '--runtime.workers'?"),
        ([*WSSS, "--lr", "3"], "unknown option --lr; did you mean '--classifier.optimizer.lr' or '--refine.irn.opti"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(argv, message):
    words, rest = (tuple(argv[:1]), argv[1:]) if argv[0] == "attribute" else (tuple(argv[:2]), argv[2:])
    with pytest.raises(AdvCAMError) as raised:
        declared(words).instantiate(declared(words).parse_args(rest))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("wsss", "classifier: {epochs: many}", "--classifier.epochs takes an integer above 0; got 'many'"),
        ("wsss", "classifier: {learning_rate: 1}", "there is no 'classifier.learning_rate'; did you mean 'optimizer.l"),
        ("wsss", "refine: {irn: {batch_size: 1}}", "there is no 'refine.irn.batch_size'; did you mean 'batch'?"),
        ("wsss", "gpu: 0", "there is no 'gpu'; did you mean 'runtime.device'?"),
        ("wsss", "classifier: {tensorboard: true}", "classifier.tensorboard is now runtime.logger"),
        ("wsol", "net: {stride: [1, 2]}", "--net.stride takes an integer or null; got [1, 2]"),
        ("wsol", "net: os.system", "net takes a section of keys and values or null; got 'os.system'"),
        ("wsol", "net: {class_path: os.system}", "net has no 'class_path'; there are checkpoint"),
        ("semi", "net: {seed: 3}", "net.seed is now runtime.seed"),
    ],
)
def test_files_that_are_wrong(capsys, tmp_path, monkeypatch, stage, text, message):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(f"run: r\ndata: {{root: x}}\n{text}\n")
    assert error_of(capsys, [stage, "run", "--config", "config.yaml"]).startswith(f"config.yaml: {message}")


@pytest.mark.parametrize("words", ["attribute", "analyze", "wsol maps", "semi train"])
def test_every_option_says_what_it_takes(words):
    """The option, the value, and what it takes, for every option that does not take any text."""
    parser, seen = declared(tuple(words.split())), 0
    required = [w for a in parser._actions if not a.option_strings or typed(a) == "--model" for w in (typed(a), "x")]
    required = [word for word in required if word == "x" or word.startswith("--")]
    for action in parser._actions:
        kind = getattr(action, "_typehint", None)
        if action.nargs == 0 or (kind is None and action.choices is None) or "text" in takes(kind):
            continue
        with pytest.raises(UsageError) as raised:
            parser.parse_args([*required, typed(action), "{]"])
        message = str(raised.value)
        assert message.startswith(f"{typed(action)} takes "), message
        assert "{]" in message
        assert "\n" not in message
        seen += 1
    assert seen > 5
