"""The page in a real Chromium: it opens, fits, speaks, and nothing from data gets into it."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from report_parts import HOSTILE, OURS, worst_story

from lightning_ft.report.command import report
from lightning_ft.report.page import run_page, runs_page

# the width of A4 between its margins [pixel]
PAPER = 720


@pytest.fixture(scope="module")
def pages(
    run: Path, runs: list[Path], image_run: Path, hostile_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "text": run / "report.html",
        "images": image_run / "report.html",
        "hostile": report([hostile_run], folder / "hostile.html"),
        "several": report([*runs, hostile_run], folder / "several.html"),
    }


@pytest.mark.parametrize("kind", ["text", "images", "hostile", "several"])
def test_the_page_opens_without_a_complaint_and_nothing_overflows(opened, pages, kind):
    page = opened(pages[kind])
    for closed in (True, False):
        for width, scheme in product((360, 1400), ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width, (width, scheme, closed)
        for details in page.query_selector_all("details"):
            details.evaluate("one => one.open = true")


@pytest.mark.parametrize("kind", ["text", "images", "several"])
def test_nothing_is_cut_off_on_a_sheet_of_paper(opened, pages, kind):
    page = opened(pages[kind], PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PAPER
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("kind", ["text", "images", "several"])
def test_colours_follow_the_scheme(opened, pages, kind):
    colours = []
    for scheme in ("light", "dark"):
        page = opened(pages[kind], 1400, scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        letters = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        colours.append((paper, letters))
    assert colours[0][0] != colours[1][0]
    assert colours[0][1] != colours[1][1]


@pytest.mark.parametrize("kind", ["text", "images", "hostile", "several"])
def test_every_picture_says_in_words_what_it_shows(opened, pages, kind):
    page = opened(pages[kind])
    pictures = page.query_selector_all("svg")
    assert pictures
    for picture in pictures:
        assert picture.get_attribute("role") == "img"
        for name in picture.get_attribute("aria-labelledby").split():
            assert len(page.evaluate("name => document.getElementById(name).textContent", name)) > 3
    assert all(image.get_attribute("alt") for image in page.query_selector_all("img"))


@pytest.mark.parametrize("kind", ["text", "images", "hostile", "several"])
def test_no_name_is_given_twice_and_references_are_met(opened, pages, kind):
    page = opened(pages[kind])
    names = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert [name for name, number in Counter(names).items() if number > 1] == []
    references = page.evaluate(
        "[...document.querySelectorAll('use')].map(one => (one.getAttribute('href') || one.getAttribute('xlink:href')))"
    )
    assert {reference.removeprefix("#") for reference in references} <= set(names)


@pytest.mark.parametrize("kind", ["hostile", "several"])
def test_data_gets_no_element_and_no_attribute_into_the_page(opened, pages, kind):
    page = opened(pages[kind])
    tags = set(page.evaluate("[...document.querySelectorAll('*')].map(one => one.tagName.toLowerCase())"))
    assert tags <= OURS, tags - OURS
    attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())")
    assert [name for name in attributes if name.startswith("on")] == []
    pictures = page.evaluate("[...document.querySelectorAll('image')].map(one => one.href.baseVal)")
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    links = page.evaluate("[...document.querySelectorAll('[src], a[href]')].map(one => one.src || one.href)")
    assert all(link.startswith(("data:image/jpeg;base64,", "https://arxiv.org/")) for link in links)
    assert page.query_selector_all("b").__len__() == page.query_selector_all(".tiles b, figcaption b").__len__()


def test_hostile_names_are_shown_as_they_are(opened, pages):
    text = opened(pages["hostile"]).evaluate("document.body.innerText")
    for name in HOSTILE:
        assert name in text
    assert "49" not in text.split("Confusion matrix")[0].split("What to do next")[0]


def test_marks_of_direction_and_control_characters_steer_nothing(opened, pages):
    text = pages["hostile"].read_text(encoding="utf-8")
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f\u061c\x1b\x00") & set(text)
    assert "\ufffdevil" in opened(pages["hostile"]).evaluate("document.body.innerText")


def test_the_policy_forbids_all_that_is_fetched_or_run(pages):
    text = pages["text"].read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "<script" not in text.replace("&lt;script", "")


def test_no_path_of_the_machine_is_on_the_page(pages, run, table, tiny_bert):
    for file in pages.values():
        text = file.read_text(encoding="utf-8")
        for place in (run.parent, table.parent, tiny_bert.parent, Path.home() / "x"):
            assert str(place).removesuffix("/x") + "/" not in text
    assert f"…/{table.name}" in pages["text"].read_text(encoding="utf-8")


def test_the_largest_story_stays_below_two_megabytes_and_says_what_is_left_out():
    told = worst_story(num_classes=1000, num_steps=20_000, num_blocks=200)
    page = run_page(told)
    assert len(page.encode()) < 2_000_000
    assert len(runs_page([told] * 12).encode()) < 2_000_000


def test_what_is_too_much_is_named(monkeypatch):
    monkeypatch.setattr("lightning_ft.report.page.MOST_BYTES", 100_000)
    page = run_page(worst_story(num_classes=50, num_steps=1000, num_blocks=12))
    assert "Left out, so that the page stays below 2 MB: the mistakes" in page
