"""The page of a report in a real browser, with real clicks and keys: what is drawn is what is in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from browser import CHROMIUM, Browser

import ndtorch as nd

pytestmark = [pytest.mark.once, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

NAME = "<script>alert(1)</script>"
RED, BLUE = [255, 0, 0], [0, 0, 255]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    photo = np.zeros((20, 30, 3), np.uint8)
    photo[:, :15], photo[:, 15:] = RED, BLUE
    matrix = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20)
    matrix[0, 0], matrix[9, 19] = np.nan, np.inf
    frames = np.zeros((6, 8, 8), np.uint8)
    frames[4] = 255
    return {
        "photo": photo,
        "matrix": matrix,
        "frames": frames,
        "cube": np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6),
        "vector": np.sin(np.arange(1000, dtype=np.float32) / 50),
        "huge": np.array([2**63 - 1, -5], np.int64),
        "wave": np.array([1 + 2j, 3 + 4j], np.complex64),
        NAME: np.arange(12.0),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory, arrays) -> Path:
    folder = tmp_path_factory.mktemp("report")
    safetensors.numpy.save_file(arrays, folder / "m.safetensors")
    return nd.report(folder / "m.safetensors", folder / "m.html")


@pytest.fixture
def page(browser, written) -> Iterator[Browser]:
    browser.size(1280, 1000)
    browser.open(written)
    browser.js("localStorage.clear()")
    yield browser
    assert browser.said == []
    assert browser.asked == [written.as_uri()]


def pick(page: Browser, name: str) -> None:
    """Click a row of the table."""
    page.js(
        f"document.querySelectorAll('.pick').forEach((each) => each.id = each.textContent === {name!r} ? 'wanted' : '')"
    )
    page.click("#wanted")
    assert page.js("document.querySelector('#name').textContent") == name


def names(page: Browser) -> list[str]:
    shown = "[...document.querySelectorAll('tbody tr:not([hidden]) .pick')].map((each) => each.textContent)"
    return list(page.js(shown))


def pixel(page: Browser, x: float, y: float) -> list[int]:
    """The colour of the canvas at a place in CSS pixels."""
    code = f"""(() => {{
      const copy = new OffscreenCanvas(1, 1).getContext("2d", {{ willReadFrequently: true }});
      copy.drawImage(document.querySelector("#canvas"), -{int(x)}, -{int(y)});
      return Array.from(copy.getImageData(0, 0, 1, 1).data).slice(0, 3);
    }})()"""
    return list(page.js(code))


def text(page: Browser, selector: str) -> str:
    return str(page.js(f"document.querySelector({selector!r}).textContent"))


def hover(page: Browser, x: float, y: float) -> str:
    """Point at a place of the canvas and give what is read there."""
    page.centre("#canvas")
    left, top = page.js(
        "(() => { const b = document.querySelector('#canvas').getBoundingClientRect(); return [b.x, b.y]; })()"
    )
    page.move(left + x, top + y)
    return text(page, "#readout")


# ---- the table ----


def test_the_first_array_is_shown_at_once(page, arrays):
    assert sorted(names(page)) == sorted(arrays)
    assert text(page, "#name") == names(page)[0]
    assert text(page, "#count") == f"{len(arrays)} arrays"


def test_a_click_on_a_heading_sorts_by_numbers(page, arrays):
    heading = "thead th:nth-child(5)"
    for direction in ("ascending", "descending"):
        page.click(f"{heading} button")
        sizes = [arrays[name].nbytes for name in names(page)]
        assert sizes == sorted(sizes, reverse=direction == "descending")
        assert page.js(f"document.querySelector('{heading}').getAttribute('aria-sort')") == direction


def test_what_has_no_number_comes_last(page):
    for _ in range(2):
        page.click("thead th:nth-child(6) button")
        assert set(names(page)[-2:]) == {"empty", "wave"}


def test_typing_filters_by_name_dtype_and_shape(page):
    page.click("#filter")
    page.write("matr")
    assert names(page) == ["matrix"]
    assert text(page, "#count").startswith("1 of ")
    page.js("document.querySelector('#filter').select()")
    page.write("int64")
    assert names(page) == ["huge"]


def test_a_script_as_a_name_is_text(page):
    pick(page, NAME)
    assert page.js("document.querySelectorAll('td script, th script, h2 script').length") == 0


# ---- what is drawn ----


def test_a_picture_has_the_colours_of_its_pixels(page):
    pick(page, "photo")
    assert page.js("document.querySelector('#modes :checked').value") == "picture"
    width = page.js("document.querySelector('#canvas').clientWidth") - 52
    assert pixel(page, 44 + width * 0.25, 60) == RED
    assert pixel(page, 44 + width * 0.75, 60) == BLUE
    assert hover(page, 44 + width * 0.75, 60).endswith("0, 0, 255")


def test_a_matrix_is_a_heat_map_with_marks(page):
    pick(page, "matrix")
    assert page.js("document.querySelector('#modes :checked').value") == "map"
    width = page.js("document.querySelector('#canvas').clientWidth") - 44 - 92
    cell = width / 20
    nan, low, high = pixel(page, 46, 8), pixel(page, 44 + cell * 1.5, 8), pixel(page, 44 + cell * 18.5, 6 + cell * 9.5)
    assert nan == [224, 65, 140]
    assert np.abs(np.subtract(low, [68, 2, 86])).max() <= 3, "dark end of viridis"
    assert np.abs(np.subtract(high, [250, 230, 34])).max() <= 8, "bright end of viridis"
    assert hover(page, 46, 8) == "[0, 0]  NaN"
    assert hover(page, 44 + cell * 1.5, 8) == "[0, 1]  0.00502513"


def test_colours_of_a_slice_or_of_all(page):
    pick(page, "cube")
    before = pixel(page, 200, 20)
    page.click("#choices input[type=checkbox]")
    assert pixel(page, 200, 20) != before


def test_the_slider_chooses_the_slice_with_the_keyboard(page):
    pick(page, "frames")
    assert pixel(page, 200, 100) == [0, 0, 0]
    page.js("document.querySelector('#axes input[type=range]').focus()")
    page.press("ArrowRight", times=4)
    assert page.js("document.querySelector('#axes input[type=number]').value") == "4"
    assert page.js("document.querySelector('#axes input[type=range]').getAttribute('aria-valuetext')") == "4 of 6"
    assert pixel(page, 200, 100) == [255, 255, 255]
    page.press("ArrowRight")
    assert pixel(page, 200, 100) == [0, 0, 0]


def test_a_number_chooses_the_slice(page):
    pick(page, "cube")
    assert hover(page, 46, 8) == "[0, 0, 0]  0"
    page.js("document.querySelector('#axes input[type=number]').select()")
    page.write("3")
    assert hover(page, 46, 8) == "[3, 0, 0]  90"


def test_axes_are_chosen_by_hand(page, arrays):
    pick(page, "cube")
    page.js("document.querySelector('#choices select[aria-label=rows]').focus()")
    page.press("ArrowUp")  # axis 0 instead of axis 1
    page.settle()
    assert page.js("document.querySelector('#axes').textContent").startswith("axis 1")
    assert text(page, "#axes").endswith("of 5")


def test_modes_change_with_a_click_and_with_arrows(page):
    pick(page, "matrix")
    page.click("#modes label:nth-child(2) input")
    assert page.js("document.querySelector('#modes :checked').value") == "line"
    page.press("ArrowRight")
    assert page.js("document.querySelector('#modes :checked').value") == "values"
    assert page.js("document.querySelector('#canvas').hidden") is True
    assert page.js("document.querySelector('#values tbody').rows[1].cells[1].textContent") == "0.100503"


def test_a_vector_is_a_line_and_is_read_by_keys(page, arrays):
    pick(page, "vector")
    assert page.js("document.querySelector('#modes :checked').value") == "line"
    page.js("document.querySelector('#canvas').focus()")
    page.press("ArrowRight")
    assert text(page, "#readout") == "[0]  0"
    page.press("ArrowRight", shift=True)
    index, value = text(page, "#readout").split("  ")
    assert index == "[10]"
    assert float(value) == pytest.approx(float(arrays["vector"][10]), abs=1e-6)


def test_integers_beyond_the_floats_are_exact(page):
    pick(page, "huge")
    page.click("#modes label:last-child input")
    assert page.js("document.querySelector('#values tbody').textContent") == "092233720368547758071-5"


def test_complex_numbers_have_two_parts(page):
    pick(page, "wave")
    page.js("document.querySelector('#canvas').focus()")
    page.press("ArrowRight")
    assert text(page, "#readout") == "[0]  1"
    page.js("document.querySelector('#axes select').focus()")
    page.press("ArrowDown")
    page.js("document.querySelector('#canvas').focus()")
    page.press("ArrowRight")
    assert text(page, "#readout") == "[0]  2"


def test_an_empty_array_says_so(page):
    pick(page, "empty")
    assert text(page, "#note") == "It has no elements."


def test_the_histogram_counts_and_takes_logarithms(page, arrays):
    pick(page, "vector")
    heights = "[...document.querySelectorAll('#bars rect.bar')].map((each) => Number(each.getAttribute('height')))"
    before = page.js(heights)
    assert np.argmax(before) == np.argmax(np.histogram(arrays["vector"], 64)[0])
    page.click("#log")
    assert sum(page.js(heights)) > sum(before)
    page.move(*page.centre("#bars rect.hit"))
    assert text(page, "#bar").endswith(str(np.histogram(arrays["vector"], 64)[0][0]))


def test_the_memory_layout_is_drawn(page):
    pick(page, "matrix")
    assert "strides (80, 4) bytes" in text(page, "#drawing")


# ---- keyboard, light and dark, paper ----


def test_tab_reaches_skip_links_controls_and_the_canvas(page):
    pick(page, "cube")
    page.js("document.activeElement.blur(); window.getSelection().removeAllRanges(); scrollTo(0, 0)")
    page.js("document.querySelector('.skip a').focus()")
    assert page.js("document.activeElement.getBoundingClientRect().top") >= 0, "a skip link shows when it is focused"
    page.press("Tab")
    page.press("Enter")
    assert page.js("location.hash") == "#detail"
    seen = []
    for _ in range(12):
        page.press("Tab")
        seen.append(page.js("document.activeElement.tagName + (document.activeElement.type ?? '')"))
        if seen[-1] == "CANVAS":
            break
    assert seen == [
        "INPUTradio",
        "INPUTrange",
        "INPUTnumber",
        "SELECTselect-one",
        "SELECTselect-one",
        "INPUTcheckbox",
        "CANVAS",
    ]
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus is visible"


def test_arrows_walk_through_the_names_and_enter_chooses(page):
    first, second = names(page)[:2]
    page.js("document.querySelector('.pick').focus()")
    page.press("ArrowDown")
    assert text(page, "#name") == first
    page.press("Enter")
    assert text(page, "#name") == second
    assert page.js("document.activeElement.getAttribute('aria-current')") == "true"
    assert text(page, "#announce").startswith(f"Showing {second}")


def test_dark_follows_the_system_and_the_button(page, written):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.js(background)
    page.size(1280, 1000, dark=True)
    dark = page.js(background)
    assert light != dark
    assert page.js("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"
    page.click("#theme")
    assert page.js(background) == light
    page.open(written)
    assert page.js(background) == light, "the choice is remembered"


def test_nothing_is_wider_than_a_narrow_window(page, arrays):
    page.size(360, 800)
    for name in arrays:
        page.js(f"[...document.querySelectorAll('.pick')].find((each) => each.textContent === {name!r}).click()")
        page.settle()
        assert page.js("document.documentElement.scrollWidth") <= 360, name


def test_paper_has_the_table_and_no_controls(page):
    pick(page, "matrix")
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert page.js("getComputedStyle(document.querySelector('#modes')).display") == "none"
        assert page.js("getComputedStyle(document.querySelector('#theme')).display") == "none"
        assert page.js("getComputedStyle(document.querySelector('#arrays .scroll')).overflowY") == "visible"
        assert page.call("Page.printToPDF")["data"].startswith("JVBERi0")
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_contrast_of_text_is_enough(page):
    """4.5 to 1, which WCAG 2 asks of text."""
    code = """(() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
      const behind = (node) => {
        for (; node; node = node.parentElement) {
          const colour = parse(getComputedStyle(node).backgroundColor);
          if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
      };
      const texts = ["h1", ".quiet", ".pick", "thead button", "tbody td", "#modes label", "dt", "dd", "#theme"];
      return texts.map((selector) => {
        const node = document.querySelector(selector);
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        return [selector, (a + 0.05) / (b + 0.05)];
      });
    })()"""
    for dark in (False, True):
        page.size(1280, 1000, dark=dark)
        assert [pair for pair in page.js(code) if pair[1] < 4.5] == []
