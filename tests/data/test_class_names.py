"""Tables of classes under other names and offsets."""

import json

import pytest

from advcam_attr.data.class_names import read_class_map
from advcam_attr.data.voc import CLASSES
from advcam_attr.types import AdvCAMError


def test_golden_names_of_both_data_sets(tmp_path):
    table = tmp_path / "known.json"
    table.write_text(json.dumps({"airplane": [404], "sofa": [831, 5], "zebra": [340], "cat": []}))
    known = read_class_map(table, CLASSES, class_offset=1)
    assert known == {CLASSES.index("aeroplane"): (405,), CLASSES.index("sofa"): (832, 6), CLASSES.index("cat"): ()}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such class map"),
        ("{", "JSON"),
        ("[1]", "must map class names"),
        ('{"cat": 3}', "'cat' must have a list"),
        ('{"cat": [-1]}', "'cat' must have a list"),
        ('{"cat": [true]}', "'cat' must have a list"),
        ('{"unicorn": [1]}', "none of the classes aeroplane, bicycle"),
    ],
)
def test_bad_tables_raise(tmp_path, content, word):
    if content is not None:
        (tmp_path / "known.json").write_text(content)
    with pytest.raises(AdvCAMError, match=word):
        read_class_map(tmp_path / "known.json", CLASSES)


def test_the_real_table(data_root):
    known = read_class_map(data_root / "coco" / "coco_to_imagenet.json", CLASSES)
    assert {CLASSES[place] for place in range(20)} - {CLASSES[place] for place in known} == {"person"}
