"""Reports in Chromium: keyboard, light and dark, no requests, and load time with 500 images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advcam_attr.report.page import Entry, Frame, Outline, Section, heat_uri, labels_uri, render, thumbnail
from report_runs import attribution_run, localization_run, report, score_boxes, semi_run


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as player:
        found = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(browser, path: Path, **options):
    """Return the page, opened from disk, the URLs that it requests, and its errors."""
    page = browser.new_page(**options)
    requested, errors = [], []
    page.on("request", lambda request: requested.append(request.url) if not request.url.startswith("data:") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(path.resolve().as_uri())
    return page, requested, errors


def scored_localization(folder: Path) -> Path:
    pytest.importorskip("cv2")
    run = localization_run(folder)
    score_boxes(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "scheme", "paper", "steps", "count"),
    [
        (attribution_run, "dark", "rgb(22, 24, 27)", ("CAM, t = 0", "AdvCAM, t = 1", "AdvCAM, t = 2"), 4),
        (scored_localization, "light", "rgb(255, 255, 255)", ("CAM", "AdvCAM"), 2),
        (semi_run, "dark", "rgb(22, 24, 27)", (), 2),
    ],
)
def test_in_chromium(make, scheme, paper, steps, count, capsys, tmp_path, monkeypatch, browser):
    monkeypatch.chdir(tmp_path)
    run = make(tmp_path)
    capsys.readouterr()
    entries = {(entry["name"], *entry["classes"]): entry["gain"] for entry in report(capsys, run).galleries[0]}
    page, requested, errors = opened(browser, run / "report.html", color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    assert len(requested) == 1, "the page itself"
    assert errors == []
    assert page.locator(".cards li").count() == count == len(entries)

    slider = page.get_by_label("Step")
    assert slider.is_visible() == bool(steps)
    if steps:
        assert slider.get_attribute("aria-valuetext") == steps[-1]
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == steps[-2]
        assert page.locator("output.at").text_content() == steps[-2]
        page.keyboard.press("Home")
        assert f"{steps[0]} of " in page.locator(".cards li img.heat").nth(1).get_attribute("alt")

    page.get_by_role("combobox", name="Class").select_option(index=1)
    chosen = page.get_by_role("combobox", name="Class").input_value()
    shown = page.locator(".cards li").count()
    assert shown == sum(chosen in classes for _, *classes in entries) > 0
    assert page.get_by_role("status").text_content().startswith(f"{shown} image")
    page.get_by_role("combobox", name="Class").select_option("")
    for order, sign in (("loss", 1), ("gain", -1)):
        page.get_by_role("combobox", name="Order").select_option(order)
        found = page.locator(".cards li").all()
        cards = [card.locator("h3, p.meta:first-of-type").all_text_contents() for card in found]
        gains = [sign * entries[(name, *classes.split(", "))] for name, classes in cards]
        assert gains == sorted(gains)
        assert len(set(gains)) > 1
    images = page.locator("img")
    assert images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0 && i.alt !== null)")
    page.close()


@pytest.mark.slow
def test_boxes_are_drawn_in_place(capsys, tmp_path, browser):
    report(capsys, scored_localization(tmp_path))
    page, _, _ = opened(browser, tmp_path / "run" / "report.html")
    card = page.locator(".cards li").filter(has_text="wren")
    drawing = card.get_by_role("img", name="boxes of wren: truth, CAM, AdvCAM")
    frame = drawing.bounding_box()
    boxes = [drawing.locator("rect").nth(n).bounding_box() for n in range(3)]
    assert frame["width"] == pytest.approx(2 * frame["height"], abs=1)
    for box, width in zip(boxes, (0.25, 0.25, 0.5), strict=True):
        shares = [(box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"],
                  box["width"] / frame["width"], box["height"] / frame["height"]]  # fmt: skip
        assert shares == pytest.approx([0.5, 0.2, width, 0.5], abs=0.03)
    assert card.locator(".key").all_text_contents() == ["truth", "CAM", "AdvCAM"]
    page.close()


@pytest.mark.slow
def test_five_hundred_images_load_fast(tmp_path, browser):
    rng = np.random.default_rng(0)
    entries = []
    for n in range(500):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((500, 375))
        source, size = thumbnail(coarse)
        steps = tuple(Frame(f"AdvCAM, t = {t}", heat_uri(rng.random((24, 32)))) for t in range(10))
        blocks = np.kron(rng.integers(0, 5, (6, 8)), np.ones((60, 60))).astype(np.uint8)
        labels = tuple(Frame(name, labels_uri(blocks)) for name in ("seed", "mask", "truth"))
        outlines = tuple(Outline(name, "#fff", ((1.5, 20.3, 100.1, 90.7),)) for name in ("truth", "CAM", "AdvCAM"))
        gain, kind = n / 500 - 0.5, f"class {n % 20}"
        entries.append(Entry(f"image {n}", (kind,), source, size, steps, labels, "", gain, outlines))
    path = tmp_path / "report.html"
    path.write_text(render("500 images", "", [Section("Gallery", gallery=tuple(entries), gain="gain in IoU over CAM")]))
    assert path.stat().st_size < 40e6
    page, requested, errors = opened(browser, path)
    assert (len(requested), errors) == (1, [])
    took = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
    assert took < 2000, f"{took} ms, {path.stat().st_size / 1e6:.1f} MB"
    assert page.locator(".cards li").count() == 24
    order = page.get_by_role("combobox", name="Order")
    narrow = "e => { const was = e.offsetWidth; e.style.maxWidth = 'none'; return e.offsetWidth > was; }"
    assert not order.evaluate(narrow), "its longest choice can be read"
    page.get_by_role("button", name="Next").click()
    assert "page 2 of 21" in page.get_by_role("status").text_content()
    page.close()
