"""The page of the report in a real Chromium: Debian's, headless, opened from the disk.

Skips where /usr/bin/chromium or /usr/bin/chromedriver is missing (Debian: apt-get install chromium chromium-driver)."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning_models import LONG, WORKLOAD, nano_12b, random_scores, tiny
from training_results import losses, results

from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.questions import remedies
from minitron.memory.workload import workload_of
from minitron.report.charts import figures
from minitron.report.document import build_report, write_report
from minitron.report.training import training_document
from minitron.search.format_choices import format_choices
from minitron.search.search import build_lattice, search
from minitron.units import GiB

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason=f"{CHROMIUM} or {DRIVER} is missing: no browser to open it in"
)

# Without these Chromium itself looks for updates, and the log would show requests that are none of the page's.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The report of Nemotron-Nano-12B-v2 on an A10G, with scores, as a page on the disk and its document."""
    spec = nano_12b()
    gpu = find_gpu("A10G")
    budget, serving, scores = Budget(gpu.usable, 0.95, round(1.3 * GiB), None, gpu), workload_of(spec, LONG), None
    scores = random_scores(spec)
    result = search(build_lattice(spec, serving, scores=scores), serving, budget, scores=scores)
    document = build_report(
        spec,
        "Nemotron-Nano-12B-v2",
        result,
        scores=scores,
        remedies=remedies(spec, serving, budget),
        command="minitron",
    )
    document["training"] = training_document(results(), losses())
    folder = tmp_path_factory.mktemp("browser") / "report"
    write_report(folder, document, overwrite=False)
    return folder / "report.html", document


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One headless Chromium for all tests."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


Open = Callable[..., Any]


@pytest.fixture
def page(chromium: Any, report: tuple[Path, dict[str, Any]]) -> Open:
    """Opens the page at a size and in a theme, and waits until it is drawn."""

    return lambda size=DESKTOP, theme="light": opened(chromium, report[0], size, theme)


def opened(driver: Any, page: Path, size: tuple[int, int], theme: str) -> Any:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    set_theme(driver, theme)
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(page.as_uri())
    wait_for(driver, "document.documentElement.classList.contains('drawn')")
    return driver


def set_theme(driver: Any, theme: str) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )


def wait_for(driver: Any, condition: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, f"not in {seconds} s: {condition}"
        time.sleep(0.02)


def messages(driver: Any) -> list[dict[str, Any]]:
    return [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_opens_offline_without_errors_and_draws_every_chart(
    page: Open, report: tuple[Path, dict[str, Any]], size: tuple[int, int], theme: str
) -> None:
    driver = page(size, theme)
    assert driver.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for message in messages(driver)
        if message["method"] == "Network.requestWillBeSent"
    ]
    # The page itself was seen, and nothing else but what it holds.
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report[0].as_uri()]
    marks = driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.chart')].map((chart) => [chart.id, "
        "[chart.querySelectorAll('.trace path, .heatmaplayer image').length, "
        "chart.querySelector('svg.main-svg').getBoundingClientRect().width, chart.clientWidth]]))"
    )
    assert set(marks) == set(figures(report[1])) == {"memory", "pareto", "context", "batch", "kept", "training"}
    for name, (drawn, width, room) in marks.items():
        assert drawn > 0, name
        assert 250 < width <= room + 1, name


def test_a_point_of_the_front_says_what_it_is(page: Open, report: tuple[Path, dict[str, Any]]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    driver, document = page(), report[1]
    points = driver.find_elements(By.CSS_SELECTOR, "#pareto .scatterlayer .trace:first-child .points path")
    assert len(points) == len(document["front"]) > 20
    place = 5
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[place])
    ActionChains(driver).move_to_element(points[place]).perform()
    wait_for(driver, "document.querySelector('#pareto .hoverlayer .hovertext')")
    told = driver.execute_script(
        "return [...document.querySelectorAll('#pareto .hovertext tspan')].map((line) => line.textContent).join(' ')"
    )
    point = document["front"][place]
    sizes = point["sizes_count"]
    assert f"{sizes['num_hidden_layers']} layers, hidden {sizes['hidden_size']:,}" in told
    assert f"FFN {sizes['intermediate_size']:,}" in told
    assert f"memory {point['total_bytes'] / GiB:,.3f} GiB" in told
    assert f"parameters {point['parameters'] / 1e9:,.3f} B" in told
    assert f"score {point['score_parameters'] / 1e9:,.3f} B" in told


def test_a_phone_needs_no_sideways_scroll(page: Open) -> None:
    driver = page(PHONE)
    width, room = driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
    assert room == PHONE[0]
    assert width <= room
    # The tables that are wider scroll in boxes of their own.
    wider = driver.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    )
    assert wider >= 1


def colours(driver: Any) -> tuple[str, ...]:
    """Of the page, of a card, and of what two charts draw with."""
    found: list[str] = driver.execute_script(
        "const style = (place) => getComputedStyle(document.querySelector(place));"
        "return [style('body').backgroundColor, style('section').backgroundColor, "
        "style('#memory .bars .point path').fill, style('#context .scatterlayer path.js-line').stroke, "
        "style('#memory .ytick text').fill]"
    )
    return tuple(found)


def test_light_and_dark_differ_and_charts_follow_a_change(page: Open) -> None:
    driver = page(theme="light")
    light = colours(driver)
    set_theme(driver, "dark")
    fill = "getComputedStyle(document.querySelector('#memory .bars .point path')).fill"
    wait_for(driver, f"{fill} !== '{light[2]}'")
    wait_for(driver, "document.readyState === 'complete'")
    changed = colours(driver)
    assert all(one != other for one, other in zip(light, changed, strict=True))
    assert colours(page(theme="dark")) == changed


def test_the_layer_map_strikes_out_what_goes(page: Open, report: tuple[Path, dict[str, Any]]) -> None:
    driver, document = page(), report[1]
    best = document["candidates"][document["chosen_index"]]
    tiles = driver.execute_script(
        "return [...document.querySelectorAll('.map li')].map((tile) => [tile.textContent, "
        "tile.classList.contains('gone'), getComputedStyle(tile).backgroundImage !== 'none'])"
    )
    kept = set(best["kept_layer_indices"])
    assert tiles == [
        [letter, layer not in kept, layer not in kept] for layer, letter in enumerate(document["model"]["letters"])
    ]


def test_it_prints(page: Open) -> None:
    driver = page(theme="dark")
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert printed["data"].startswith("JVBERi0")  # %PDF-
    assert not driver.execute_script("return document.documentElement.classList.contains('printing')")
    # On paper it is light whatever the screen is, and the charts are as wide as a sheet has room for.
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    wait_for(driver, "document.querySelector('#memory svg.main-svg').getBoundingClientRect().width < 700")
    on_paper = driver.execute_script("return getComputedStyle(document.querySelector('section')).backgroundColor")
    assert on_paper == "rgb(255, 255, 255)"
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    wait_for(driver, "document.querySelector('#memory svg.main-svg').getBoundingClientRect().width > 900")
    assert driver.get_log("browser") == []


BY_LAYER = {
    "intermediate_size": {4: 16, 8: 64},
    "n_routed_experts": {1: 4, 6: 2},
    "moe_intermediate_size": {1: 32, 6: 8},
    "num_experts_per_tok": {6: 1},
}


@pytest.fixture(scope="session")
def bits_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The report of a small hybrid whose parts are in formats of their own, and whose layers differ in size."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32}
    spec = tiny("MEM*-ME*-", **sizes)
    serving = replace(WORKLOAD, weights="bf16", kv="bf16")
    choices = format_choices(spec, serving, ["bf16", "int8", "int4"])
    lattice = replace(build_lattice(spec, serving, lattice={"intermediate_size": "64"}), formats=choices)
    budget = Budget(footprint(spec, serving).total)
    result = search(lattice, serving, budget, top=2)
    mixed = next(choice for choice in choices if len(set(choice.of.values())) == 3)
    best = replace(result.best, formats=mixed, by_layer=BY_LAYER)
    document = build_report(spec, "tiny", replace(result, candidates=(best,)))
    folder = tmp_path_factory.mktemp("bits") / "report"
    write_report(folder, document, overwrite=False)
    return folder / "report.html", document


STRIPS = """
return [...document.querySelectorAll('.bits li')].map((strip) => ({
    text: strip.querySelector('.unseen').textContent,
    letter: strip.querySelector('b').textContent,
    title: strip.title,
    bars: [...strip.querySelectorAll(':scope > span:not(.unseen)')].map((bar) => [
        bar.getBoundingClientRect().height, getComputedStyle(bar).backgroundColor]),
}))"""

LEGEND = """
const swatches = document.querySelector('.bits').parentElement.querySelectorAll('.legend li');
return Object.fromEntries([...swatches].map((entry) => [
    entry.textContent, getComputedStyle(entry.querySelector('.swatch')).backgroundColor]))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_strip_has_a_layers_formats_as_colours_and_its_own_sizes_as_height(
    chromium: Any, bits_page: tuple[Path, dict[str, Any]], theme: str
) -> None:
    driver = opened(chromium, bits_page[0], DESKTOP, theme)
    assert driver.get_log("browser") == []
    strips, legend = driver.execute_script(STRIPS), driver.execute_script(LEGEND)
    formats = bits_page[1]["candidates"][0]["formats"]
    assert "".join(strip["letter"] for strip in strips) == "MEM*-ME*-h"
    assert set(legend) == set(formats.values()) == {"bf16", "int8", "int4"}
    assert len(set(legend.values())) == 3
    for layer, strip in enumerate(strips):
        told = strip["text"].removeprefix(f"layer {layer}: ").removeprefix("outside layers: ").split(", ")
        assert strip["title"] == strip["text"]
        assert [legend[entry.rpartition(" in ")[2]] for entry in told] == [colour for _, colour in strip["bars"]]
        assert all(formats[entry.split()[0]] == entry.rpartition(" in ")[2] for entry in told)
    heights = [sum(height for height, _ in strip["bars"]) for strip in strips]
    # Numbers of two linears between hidden and FFN, and of so many experts of so many channels, by hand.
    assert heights[8] == pytest.approx(4 * heights[4], abs=3)
    experts = {layer: strips[layer]["bars"][0][0] for layer in (1, 6)}
    assert experts[1] == pytest.approx(experts[6] * (4 * 32) / (2 * 8), abs=5)
    assert strips[8]["text"] == f"layer 8: mlp 8,192 in {formats['mlp']}"
    assert strips[4]["text"] == f"layer 4: mlp 2,048 in {formats['mlp']}"


def test_bits_are_read_out_and_need_no_sideways_scroll(chromium: Any, bits_page: tuple[Path, dict[str, Any]]) -> None:
    driver, document = opened(chromium, bits_page[0], PHONE, "light"), bits_page[1]
    width, room = driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
    assert width <= room == PHONE[0]
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    read = [node.get("name", {}).get("value", "") for node in nodes if not node["ignored"]]
    for layer in document["bits"]:
        told = [f"{part['part']} " for part in layer["parts"]]
        place = "outside layers" if layer["layer_index"] is None else f"layer {layer['layer_index']}"
        spoken = next(text for text in read if text.startswith(f"{place}: {told[0]}"))
        assert all(text in spoken for text in told)
    assert sum(node.get("role", {}).get("value") == "list" for node in nodes if not node["ignored"]) >= 2
    # The same by part in a box that the keyboard reaches, as every table is.
    table = driver.execute_script(
        "const box = document.querySelector('.bits + .scroll'); box.focus();"
        "return [document.activeElement === box, [...box.querySelectorAll('tbody tr')].map((row) => "
        "[...row.children].map((cell) => cell.textContent))]"
    )
    assert table[0]
    assert table[1][0][0] == "the cut"
    assert {part: form for part, form, *_ in table[1][1:]} == {
        part["part"]: part["form"] for layer in document["bits"] for part in layer["parts"]
    }
    assert sum(float(share.removesuffix("%")) for *_, share in table[1]) == pytest.approx(100, abs=0.3)
