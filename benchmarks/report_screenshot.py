"""A picture of the planning report: the page is made, opened in headless Chromium, and its top is saved as PNG.

With --page a report that is there already is opened instead, and with --section one of its sections is the picture.

    python benchmarks/report_screenshot.py --output docs/images/report.png
    python benchmarks/report_screenshot.py --output dark.png --theme dark
    python benchmarks/report_screenshot.py --output phone.png --width 390 --height 2000
    python benchmarks/report_screenshot.py --page run/report/report.html --section "Bits by part" --output bits.png
    python benchmarks/report_screenshot.py --page planner.html --section Plan --output docs/images/planner.png

Needs Debian's chromium and chromium-driver, and selenium from the extra `dev`.
"""

import argparse
import base64
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver

from minitron.files import new_file
from minitron.memory.budget import Budget
from minitron.memory.gpus import find_gpu
from minitron.memory.questions import remedies
from minitron.memory.workload import workload_of
from minitron.model.spec import read_spec
from minitron.report.document import build_report
from minitron.report.html import to_html
from minitron.search.search import build_lattice, search
from minitron.units import parse_bytes, parse_count

CONFIG = Path(__file__).parents[1] / "tests" / "reference" / "models" / "Nemotron-Nano-12B-v2.json"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")

DRAWN = """
const is = (name) => document.documentElement.classList.contains(name);
return document.getElementById("figures") ? is("drawn") : is("planned");
"""
"""Whether a report's charts are drawn, or the planner's page is."""

SECTION = """
const heading = [...document.querySelectorAll('section > h2')].find((one) => one.textContent === arguments[0]);
const box = heading.parentElement.getBoundingClientRect();
return {x: box.x + scrollX - 8, y: box.y + scrollY - 8, width: box.width + 16, height: box.height + 16};
"""


def make_page(config: Path, gpu_name: str, context: int, reserve: int) -> str:
    """The report of a plan with the default lattice, as HTML."""
    spec, gpu = read_spec(config), find_gpu(gpu_name)
    budget, workload = Budget(gpu.usable, 0.95, reserve, None, gpu), workload_of(spec, context)
    result = search(build_lattice(spec, workload), workload, budget)
    command = f"minitron plan {config.name} --gpu {gpu_name} --context {context} --reserve {reserve} -o report"
    return to_html(build_report(spec, str(config), result, remedies=remedies(spec, workload, budget), command=command))


def take_picture(page: Path, width: int, height: int, theme: str, title: str = "") -> bytes:
    """The top of a page, as PNG; `height` 0 ends below the Pareto chart.  With a `title` its section alone."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        metrics: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(page.as_uri())
        while not driver.execute_script(DRAWN):
            time.sleep(0.05)
        bottom = "document.getElementById('pareto').getBoundingClientRect().bottom + scrollY + 12"
        end = height or (1 if title else int(driver.execute_script(f"return {bottom}")))
        clip = {"x": 0, "y": 0, "width": width, "height": end, "scale": 1}
        if title:
            clip = driver.execute_script(SECTION, title) | {"scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        return base64.b64decode(shot["data"])
    finally:
        driver.quit()


def main() -> None:
    """Make the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--gpu", default="A10G")
    parser.add_argument("--context", type=parse_count, default="128k")
    parser.add_argument("--reserve", type=parse_bytes, default="1.3GiB")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=0, help="0: down to the end of the Pareto chart")
    parser.add_argument("--page", type=Path, help="report.html of a run or a plan, instead of making one")
    parser.add_argument("--section", default="", help="the title of the section to take, instead of the top")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = given.page and given.page.resolve()
        if page is None:
            page = Path(folder) / "report.html"
            page.write_text(make_page(given.config, given.gpu, given.context, given.reserve), encoding="utf-8")
        picture = take_picture(page, given.width, given.height, given.theme, given.section)
    with new_file(given.output) as partial:
        partial.write_bytes(picture)
    print(f"{given.output}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
