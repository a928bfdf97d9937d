"""The planner's page in a real Chromium: its bytes are Python's.  Skips where there is no browser."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planner_models import MODELS, models
from minitron.memory.footprint import footprint
from minitron.memory.law import WORDS
from minitron.memory.questions import largest_batch, largest_context
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import spec_of
from minitron.report.planner import bundled_models
from pipeline.planner_page import planner_page
from pipeline.planning import Planning

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="no browser to open it in")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

NAMES = (
    *("Nemotron-Nano-9B-v2", "Nemotron-3-Nano-30B-A3B", "Qwen3-Next-80B-A3B-FP8", "Granite-4.0-H-Tiny", "Jamba-v0.1"),
    *("Llama-3.1-8B", "gemma-3-12b", "DeepSeek-V2-Lite", "gpt-oss-120b", "falcon-mamba-7b"),
)
SETTINGS = 300


def test_the_package_has_every_model_of_the_reference() -> None:
    assert json.loads(MODELS.read_text(encoding="utf-8")) == models() == bundled_models()
    assert len(bundled_models()) > 130


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of ten models."""
    folder = tmp_path_factory.mktemp("planner")
    paths = []
    for name in NAMES:
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(bundled_models()[name]), encoding="utf-8")
    text = planner_page(paths, Planning(gpu="A10G", engine="vllm"), bundled=False)
    assert len(text) < 400_000
    (folder / "planner.html").write_text(text, encoding="utf-8")
    return folder / "planner.html"


@pytest.fixture(scope="module")
def driver(page: Path) -> Iterator[Any]:
    """The page in a browser, on a phone's screen."""
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    found.get(page.as_uri())
    WebDriverWait(found, 20).until(
        lambda one: one.execute_script("return document.documentElement.classList.contains('reads')")
    )
    yield found
    found.quit()


ASK = """
return arguments[0].map(([place, engine, asked]) => {
  const law = Planner.data().models[place].law;
  const text = (lines) => Object.fromEntries(Object.entries(lines).map(([name, bytes]) => [name, String(bytes)]));
  return text(Law.lines(law, engine, asked));
});"""


@needs_browser
def test_its_bytes_are_pythons_at_random_settings(driver: Any) -> None:
    laws = [model["law"] for model in driver.execute_script("return Planner.data().models")]
    specs = [spec_of(bundled_models()[name]) for name in NAMES]
    rng, asked = random.Random(22), []
    for number in range(SETTINGS):
        place = number % len(NAMES)
        engine = rng.choice(list(laws[place]["engines"]))
        own = laws[place]["engines"][engine]
        one: dict[str, Any] = {word: rng.choice(own["formats"][word]) for word in WORDS}
        one |= {"context": rng.randrange(1, 2**21), "batch": rng.randrange(1, 300), "step_tokens": 2048}
        one["gpus"] = 1 if one["weights"] in own["one_gpu"] else rng.choice(laws[place]["split_gpus"])
        asked.append((place, engine, one))
    found = driver.execute_script(ASK, asked)
    for (place, engine, one), answer in zip(asked, found, strict=True):
        workload = _workload(engine, one)
        expected = footprint(specs[place], workload, None).lines
        assert {line: int(text) for line, text in answer.items() if text != "0"} == {
            line: int(count) for line, count in expected.items() if count
        }, (NAMES[place], engine, one)


def _workload(engine: str, one: dict[str, Any]) -> Workload:
    formats = {word: one[word] for word in WORDS}
    settings = Engine(engine, max_num_batched_tokens=one["step_tokens"])
    return Workload(one["context"], one["batch"], **formats, tensor_parallel=one["gpus"], engine=settings)


@needs_browser
def test_limits_and_command_follow_a_control(driver: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    def choose(name: str, value: str) -> None:
        Select(driver.find_element(By.ID, f"plan-{name}")).select_by_value(value)

    choose("model", str(NAMES.index("Nemotron-Nano-9B-v2")))
    choose("gpu", "RTX 4090")
    choose("engine", "vllm")
    choose("weights", "fp8")
    batch = driver.find_element(By.ID, "plan-batch")
    batch.clear()
    batch.send_keys("7")
    spec, planning = spec_of(bundled_models()["Nemotron-Nano-9B-v2"]), Planning(gpu="RTX 4090", engine="vllm")
    gpu = planning.device
    assert gpu is not None
    budget = planning.budget_of(gpu)
    workload = Workload(32_768, 7, "fp8", engine=planning.engine_on(gpu))
    answer = driver.execute_script(
        "const one = Planner.answer(Planner.asked().model); "
        "return [one.context, one.batch, one.total].map(String).concat(one.command)"
    )
    total = int(footprint(spec, workload, None).total)
    expected = [largest_context(spec, workload, budget), largest_batch(spec, workload, budget), total]
    assert answer[:3] == [str(number) for number in expected]
    assert answer[3] == serve_line("Nemotron-Nano-9B-v2", spec, workload, budget)
    assert driver.find_element(By.ID, "plan-command").text == answer[3]
    assert ("does not fit" in driver.find_element(By.ID, "plan-verdict").text) == (total > budget.available)
    assert f"{expected[0]:,} tokens" in driver.find_element(By.ID, "plan-limits").text


@needs_browser
def test_a_wrong_number_is_told_and_a_phone_needs_no_sideways_scroll(driver: Any) -> None:
    from selenium.webdriver.common.by import By

    context = driver.find_element(By.ID, "plan-context")
    context.clear()
    context.send_keys("0")
    assert driver.find_element(By.ID, "plan-context_wrong").text == "Give a whole number from 1 to 16,777,216."
    context.clear()
    context.send_keys("4096")
    assert driver.find_element(By.ID, "plan-context_wrong").text == ""
    width, room = driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
    assert width <= room == 390


DROP = """
return arguments[0].map(([name, text]) => {
  const law = Reading.model(text, name).law;
  return Object.fromEntries(Object.keys(law.engines).flatMap((engine) => law.split_gpus.slice(0, 2).map((gpus) => {
    const asked = {context: 9000, batch: 3, gpus, step_tokens: 2048, ...law.engines[engine].asked};
    const lines = Object.entries(Law.lines(law, engine, asked)).map(([name, bytes]) => [name, String(bytes)]);
    return [`${engine} ${gpus}`, [asked, Object.fromEntries(lines)]];
  })));
});"""

CHANGES: dict[str, dict[str, Any]] = {
    "Nemotron-Nano-9B-v2": {"hidden_size": 4096, "hybrid_override_pattern": "M-M*-M-M*", "num_hidden_layers": 9},
    "Nemotron-3-Nano-30B-A3B": {"n_routed_experts": 96, "num_nextn_predict_layers": 0},
    # What tells its layers reads all of its config, so that a size of its own would be told of instead.
    "Granite-4.0-H-Tiny": {"finetuned_from": "Granite-4.0-H-Tiny"},
    "Jamba-v0.1": {"intermediate_size": 8192, "torch_dtype": "float16"},
    "Llama-3.1-8B": {"num_hidden_layers": 7, "num_key_value_heads": None, "tie_word_embeddings": True},
    "DeepSeek-V2-Lite": {"kv_lora_rank": 256},
    "falcon-mamba-7b": {"num_hidden_layers": 9},
}
"""Model -> what a config says in the place of its own: other sizes, or fewer layers."""


@needs_browser
def test_a_dropped_config_comes_to_pythons_bytes(driver: Any) -> None:
    configs = {name: bundled_models()[name] | changes for name, changes in CHANGES.items()}
    found = driver.execute_script(DROP, [[name, json.dumps(config)] for name, config in configs.items()])
    for (name, config), answers in zip(configs.items(), found, strict=True):
        assert {"plain 1", "vllm 1"} <= set(answers)
        spec = spec_of(config)
        for setting, (asked, lines) in answers.items():
            engine = setting.split()[0]
            meant = workload_of(spec, 9000, 3, engine=Engine(engine))
            assert {word: asked[word] for word in WORDS} == {word: getattr(meant, word) for word in WORDS}, name
            expected = footprint(spec, _workload(engine, asked), None).lines
            assert {line: int(text) for line, text in lines.items() if text != "0"} == {
                line: int(count) for line, count in expected.items() if count
            }, (name, setting)


BAD = {
    "no-json": ("{", "It is no JSON"),
    "a-list": ("[1]", "It holds no JSON object"),
    "no-type": ('{"hidden_size": 8}', "It has no model_type"),
    "unknown": ('{"model_type": "gpt2"}', "`minitron plan --page"),
    "no-size": ('{"model_type": "llama", "tie_word_embeddings": false}', "It has no hidden_size"),
    "quantised": (json.dumps(bundled_models()["Qwen3-Next-80B-A3B-FP8"]), "It is a quantised model's."),
}


@needs_browser
def test_a_file_is_chosen_and_a_bad_one_is_told_kindly(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    told = driver.find_element(By.ID, "plan-dropped")

    def give(name: str, text: str) -> str:
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        driver.find_element(By.ID, "plan-file").send_keys(str(tmp_path / f"{name}.json"))
        WebDriverWait(driver, 10).until(lambda _: told.text.startswith(name))
        return str(told.text)

    for name, (text, why) in BAD.items():
        assert "cannot be planned here" in (answer := give(name, text)), answer
        assert why in answer
    before = len(driver.execute_script("return Planner.data().models"))
    answer = give("mine", json.dumps(bundled_models()["Llama-3.1-8B"] | {"hidden_size": 2048, "head_dim": 128}))
    assert answer == "mine is read: llama, 32 layers. It is chosen above."
    assert driver.execute_script("return [Planner.asked().model, Planner.data().models.length]") == [before, before + 1]
    assert driver.find_element(By.ID, "plan-told").text == "mine: llama, 32 layers."


@needs_browser
def test_it_asks_for_nothing_and_every_control_has_a_name(driver: Any, page: Path) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
    assert driver.get_log("browser") == []
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("combobox", "spinbutton", "slider", "img", "button")
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert len(controls) > 10
    assert all(node["name"]["value"] for node in controls)


def test_the_command_writes_it_without_heavy_imports(tmp_path: Path) -> None:
    config = tmp_path / "Llama-3.1-8B.json"
    config.write_text(json.dumps(bundled_models()["Llama-3.1-8B"]), encoding="utf-8")
    script = (
        "import sys; import minitron.report.planner as planner; planner.bundled_models = dict; "
        "from cli.app import main; sys.argv = ['minitron', 'plan', *sys.argv[1:]]\n"
        "try: main()\nfinally: assert not {'torch', 'psutil', 'transformers'} & set(sys.modules)"
    )
    page = tmp_path / "planner.html"
    done = subprocess.run(
        [sys.executable, "-c", script, str(config), "--page", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Written: .*planner\.html", done.stdout)
    assert "Llama-3.1-8B" not in page.read_text(encoding="utf-8")  # compressed
