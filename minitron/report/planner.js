// The planner: controls, and what the memory laws in the page say at their setting.  All bytes are those of law.js.
"use strict";

const Planner = (() => {
  const WORDS = { weights: "weights", kv: "keys and values", ssm_state: "recurrent states" };
  const MOST_TOKENS = 2 ** 24;
  const MOST_SEQUENCES = 4096;
  const QUIET = 0.002; // of the bar, below which a line has no room for its name
  let data;
  let asked;
  const $ = (name) => document.getElementById(`plan-${name}`);

  function made(tag, attributes = {}, ...children) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") found.style.cssText = value;
      else if (value !== null && value !== false) found.setAttribute(name, value === true ? "" : value);
    }
    found.append(...children);
    return found;
  }

  // As minitron/units.py writes them.
  function size(bytes) {
    const count = Number(bytes);
    const digits = { minimumFractionDigits: 3, maximumFractionDigits: 3 };
    for (const [unit, each] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
      if (Math.abs(count) >= each) return `${(count / each).toLocaleString("en", digits)} ${unit}`;
    }
    return `${count.toLocaleString("en")} B`;
  }

  const number = (value) => value.toLocaleString("en");
  const gpuOf = () => data.gpus.find((gpu) => gpu.name === asked.gpu);
  const shown = () => (data.one ? [data.models[asked.model]] : data.models);
  const first = () => shown()[0].law;

  // What is asked of one model: a format that it does not have is the one that it has by itself.
  function askedOf(law, engine = asked.engine) {
    const own = law.engines[engine];
    const gpu = gpuOf().engines[engine];
    const found = { context: asked.context, batch: asked.batch, gpus: asked.gpus, step_tokens: gpu.step_tokens };
    for (const word of Object.keys(WORDS)) {
      found[word] = own.formats[word].includes(asked[word]) ? asked[word] : own.asked[word];
    }
    const same = found.weights === own.asked.weights;
    found.conv_state = same ? own.asked.conv_state : own.computed[found.weights].conv_state;
    if (own.one_gpu.includes(found.weights) || !law.split_gpus.includes(Number(asked.gpus))) found.gpus = 1;
    return found;
  }

  // Everything about one model at this setting.
  function answer(model) {
    const { law } = model;
    const own = askedOf(law);
    const { available_bytes: available, share } = gpuOf().engines[asked.engine];
    const lines = Law.lines(law, asked.engine, own);
    const total = Object.values(lines).reduce((sum, bytes) => sum + bytes, 0n);
    const most = (quantity) => Law.most(law, asked.engine, own, quantity, available);
    return {
      model, own, lines, total, available: BigInt(available), spare: BigInt(available) - total,
      context: most("context"), batch: most("batch"),
      command: asked.engine === "vllm" ? Law.command(law, asked.engine, own, share) : "",
    };
  }

  function limit(value, unit) {
    if (value === Law.UNLIMITED) return "no limit: what the model keeps stops growing";
    return value ? `${number(value)} ${unit}` : "none";
  }

  function verdict(found) {
    const name = data.one || data.models.length === 1 ? "It" : found.model.label;
    const { spare } = found;
    return spare >= 0n ? `${name} fits, ${size(spare)} to spare.` : `${name} does not fit: ${size(-spare)} too much.`;
  }

  function bar(found, widest) {
    const parts = Object.entries(found.lines).filter(([, bytes]) => bytes > 0n);
    const share = (bytes) => (100 * Number(bytes)) / widest;
    const told = parts.map(([name, bytes]) => `${data.titles[name]} ${size(bytes)}`).join(", ");
    const strip = made("div", { class: "strip", role: "img", "aria-label": `${found.model.label}: ${told}` });
    for (const [name, bytes] of parts) {
      if (Number(bytes) < QUIET * widest) continue;
      const colour = `var(--line-${name}, var(--line-other))`;
      const title = `${data.titles[name]}: ${size(bytes)}`;
      strip.append(made("span", { title, style: `width: ${share(bytes)}%; background: ${colour}` }));
    }
    strip.append(made("i", { style: `left: ${share(found.available)}%`, title: `budget ${size(found.available)}` }));
    const fits = found.spare >= 0n;
    const badge = made("span", { class: `badge ${fits ? "fits" : "misses"}` }, fits ? "fits" : "does not fit");
    return made("div", { class: "model" }, made("p", {}, `${found.model.label}: ${size(found.total)} `, badge), strip);
  }

  function bars(answers) {
    const widest = 1.04 * Math.max(...answers.flatMap((one) => [Number(one.total), Number(one.available)]));
    $("bars").replaceChildren(...answers.map((one) => bar(one, widest)));
    const used = new Set(answers.flatMap((one) => Object.keys(one.lines).filter((name) => one.lines[name] > 0n)));
    const legend = Object.keys(data.titles).filter((name) => used.has(name)).map((name) =>
      made("li", {}, made("span", { class: "swatch", style: `--swatch: var(--line-${name}, var(--line-other))` }), data.titles[name]));
    $("legend").replaceChildren(...legend);
  }

  function table(answers) {
    const names = Object.keys(data.titles).filter((name) => answers.some((one) => (one.lines[name] || 0n) > 0n));
    const cell = (bytes) => made("td", {}, size(bytes), made("small", {}, `${number(bytes)} B`));
    const rows = names.map((name) => made("tr", {},
      made("th", { scope: "row", class: "words" }, data.titles[name]), ...answers.map((one) => cell(one.lines[name] || 0n))));
    rows.push(made("tr", { class: "sum" }, made("th", { scope: "row", class: "words" }, "total"), ...answers.map((one) => cell(one.total))));
    const head = answers.map((one) => made("th", { scope: "col" }, data.one ? "size" : one.model.label));
    $("lines").replaceChildren(
      made("thead", {}, made("tr", {}, made("th", { scope: "col", class: "words" }, "memory"), ...head)), made("tbody", {}, ...rows));
  }

  function how(found) {
    if (!$("how").parentElement.open) return;
    const { nodes, engines } = found.model.law;
    const rows = Object.entries(engines[asked.engine].lines_index).map(([name, place]) => {
      const text = Law.told(nodes, place, found.own) || "an expression of many terms; report.json and --json write all such out";
      return [made("dt", {}, `${data.titles[name]} = ${number(found.lines[name])} B`), made("dd", {}, text)];
    });
    $("how").replaceChildren(...rows.flat());
  }

  function notes(found) {
    const gpu = gpuOf();
    const { own, model } = found;
    const told = gpu.note ? [gpu.note] : [];
    if ((gpu.without_kernels[asked.engine] || []).includes(own.kv)) {
      told.push(`${data.engines[asked.engine]} has no kernels for keys and values in ${own.kv} on ${gpu.name}.`);
    }
    for (const word of ["weights", "kv"]) {
      if (gpu.emulated.includes(own[word])) told.push(`${gpu.name} has no native ${own[word]}: the memory is right, but matmuls are emulated or refused.`);
    }
    if (model.longest_context_tokens && asked.context > model.longest_context_tokens) {
      told.push(`${number(asked.context)} tokens are more than the ${number(model.longest_context_tokens)} that the config gives as the longest context.`);
    }
    $("notes").replaceChildren(...[...new Set(told)].map((text) => made("li", {}, text)));
  }

  function redraw() {
    const start = performance.now();
    const answers = shown().map(answer);
    $("verdict").textContent = answers.map(verdict).join(" ");
    $("told").textContent = data.one ? `${answers[0].model.name}: ${answers[0].model.told}.` : "";
    const limits = answers.flatMap((one) => {
      const who = data.one || answers.length === 1 ? "" : `, ${one.model.label}`;
      return [
        [`longest context at ${number(asked.batch)} sequence${asked.batch === 1 ? "" : "s"}${who}`, limit(one.context, "tokens")],
        [`most sequences at ${number(asked.context)} tokens${who}`, limit(one.batch, "sequences")],
      ];
    });
    $("limits").replaceChildren(...limits.flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, value)]));
    bars(answers);
    table(answers);
    notes(answers[0]);
    how(answers[0]);
    const commands = answers.map((one) => one.command).filter((text) => text);
    $("command").textContent = commands.join("\n");
    $("command").hidden = !commands.length;
    $("setting").dataset.drawn = (performance.now() - start).toFixed(1);
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => made("option", { value, selected: String(value) === String(chosen) }, text)));
    select.disabled = options.length < 2;
  }

  // The choices that there are at this setting.
  function offer() {
    const law = first();
    if (!law.engines[asked.engine]) [asked.engine] = Object.keys(law.engines);
    const own = askedOf(law);
    const one = law.engines[asked.engine];
    Object.assign(asked, Object.fromEntries(Object.keys(WORDS).map((word) => [word, own[word]])), { gpus: Number(own.gpus) });
    fill($("engine"), Object.keys(law.engines).map((name) => [name, data.engines[name]]), asked.engine);
    for (const word of Object.keys(WORDS)) fill($(word), one.formats[word].map((form) => [form, form]), asked[word]);
    const counts = one.one_gpu.includes(asked.weights) ? [1] : law.split_gpus;
    fill($("gpus"), counts.map((count) => [count, `${count} GPU${count === 1 ? "" : "s"}`]), asked.gpus);
    for (const name of ["context", "batch"]) {
      $(name).value = asked[name];
      $(`${name}_slide`).value = Math.log2(asked[name]);
    }
  }

  function set(changes) {
    const before = first().engines[asked.engine];
    const weights = asked.weights;
    Object.assign(asked, changes);
    if ("weights" in changes && before.computed[weights] && asked.kv === before.computed[weights].kv) {
      const now = before.computed[asked.weights];
      if (now) asked.kv = now.kv;
    }
    if ("engine" in changes || "model" in changes) {
      const own = first().engines[asked.engine] || Object.values(first().engines)[0];
      // Another engine, or another model, has formats that go by themselves with it.
      Object.assign(asked, own.asked);
    }
    offer();
    redraw();
  }

  function wire() {
    for (const name of ["gpu", "engine", ...Object.keys(WORDS)]) $(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
    $("gpus").addEventListener("change", (event) => set({ gpus: Number(event.target.value) }));
    const numbers = { context: MOST_TOKENS, batch: MOST_SEQUENCES };
    for (const [name, most] of Object.entries(numbers)) {
      $(name).addEventListener("input", (event) => {
        const value = Number(event.target.value);
        const good = Number.isInteger(value) && value >= 1 && value <= most;
        event.target.setAttribute("aria-invalid", String(!good));
        $(`${name}_wrong`).textContent = good ? "" : `Give a whole number from 1 to ${number(most)}.`;
        if (good) {
          asked[name] = value;
          $(`${name}_slide`).value = Math.log2(value);
          redraw();
        }
      });
      $(`${name}_slide`).addEventListener("input", (event) => {
        const value = Math.max(1, Math.round(2 ** Number(event.target.value)));
        // Whole thousands are what people ask for; below, every number is.
        asked[name] = value > 2048 ? 1024 * Math.round(value / 1024) : value;
        $(name).value = asked[name];
        $(`${name}_wrong`).textContent = "";
        redraw();
      });
    }
    $("how").parentElement.addEventListener("toggle", redraw);
    if (data.one) $("model").addEventListener("change", (event) => set({ model: Number(event.target.value) }));
  }

  // Begin with a document (minitron/report/planner.py); with `one` a model is chosen, without all are shown.
  function start(document_, one) {
    data = { ...document_, one };
    const { model_index, gpu, engine, context_tokens, batch_sequences, tensor_parallel_gpus } = data.asked;
    asked = { model: model_index, gpu, engine, context: context_tokens, batch: batch_sequences, gpus: tensor_parallel_gpus };
    if (one) fill($("model"), data.models.map((model, place) => [place, model.label]), model_index);
    fill($("gpu"), data.gpus.map((gpu) => [gpu.name, `${gpu.name}, ${size(gpu.usable_bytes)}`]), asked.gpu);
    Object.assign(asked, first().engines[asked.engine].asked);
    wire();
    offer();
    redraw();
    document.documentElement.classList.add("planned");
  }

  // One model more, which is chosen.
  function add(model) {
    data.models.push(model);
    fill($("model"), data.models.map((each, place) => [place, each.label]), data.models.length - 1);
    set({ model: data.models.length - 1 });
  }

  return { start, add, set, data: () => data, asked: () => ({ ...asked }), answer: (place) => answer(data.models[place]) };
})();
