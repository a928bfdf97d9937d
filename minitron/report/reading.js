// Reads a config.json that is dropped on the page, by the entries that the page holds (minitron/report/reading.py), and
// says kindly what it cannot read.  It knows how to look up keys, and no family of models.
"use strict";

const Reading = (() => {
  const MOST_BYTES = 2 ** 20;
  let entries = [];

  class Unreadable extends Error {}

  const planned = (why) => new Unreadable(`${why} \`minitron plan --page planner.html config.json\` makes a page with it.`);
  const entryAt = (config, key) => key.split(".").reduce((found, part) => (found && typeof found === "object" ? found[part] : undefined), config);
  const holds = (config, entry, word) => {
    const [key, text] = word.split("=");
    const spelled = Object.entries(entry.spellings).find(([other, own]) => own === key && other in config);
    const value = spelled ? config[spelled[0]] : key in config ? config[key] : entry.defaults[key];
    const isTrue = Array.isArray(value) ? value.length > 0 : Boolean(value);
    return text === undefined ? isTrue : value === text;
  };

  function whole(key, value) {
    if (!Number.isInteger(value) || value < 1 || value > 2 ** 24) {
      throw new Unreadable(`${key} is ${JSON.stringify(value)}; it must be a whole number of 1 or more.`);
    }
    return value;
  }

  // Whether a config says the same under some keys; null is as if it said nothing.
  const says = (config, given) => Object.entries(given).every(([key, value]) => JSON.stringify(entryAt(config, key) ?? null) === JSON.stringify(value));

  function absent(config, axis, rule) {
    if (Number.isInteger(rule)) return rule;
    if (rule && rule.copy) return whole(rule.copy, config[rule.copy]);
    if (rule && rule.divide) {
      const [above, below] = rule.divide.map((key) => whole(key, config[key]));
      return Math.floor(above / below);
    }
    if (rule && rule.given && says(config, rule.given)) return rule.size;
    throw planned(`What this config leaves out for ${axis} follows from code that this page does not hold.`);
  }

  function sizesOf(config, entry) {
    return Object.fromEntries(Object.entries(entry.sizes).map(([axis, { keys, absent: rule, null: empty }]) => {
      const key = keys.find((one) => entryAt(config, one) !== undefined && entryAt(config, one) !== null);
      if (key) {
        const value = entryAt(config, key);
        if (Array.isArray(value) || value === "auto") throw planned(`${key} differs from layer to layer, or follows from others.`);
        return [axis, whole(key, value)];
      }
      const isNull = keys.some((one) => entryAt(config, one) === null);
      if ((isNull ? empty : rule) === null && keys.length) throw new Unreadable(`It has no ${keys[0]}, which a ${entry.family} model needs.`);
      return [axis, absent(config, axis, isNull ? empty : rule)];
    }));
  }

  function countsOf(config, entry) {
    if (Object.keys(entry.layout).length) return {};
    const letters = Object.entries(entry.letters);
    if (!letters.length) return { [entry.kinds[0]]: whole("num_hidden_layers", config.num_hidden_layers) };
    const pattern = config.hybrid_override_pattern;
    if (typeof pattern !== "string" || config.layers_block_type) throw planned("Its layers are not named by hybrid_override_pattern.");
    if ((config.num_hidden_layers ?? pattern.length) !== pattern.length) {
      throw new Unreadable(`hybrid_override_pattern describes ${pattern.length} layers and num_hidden_layers is ${config.num_hidden_layers}; correct one of the two.`);
    }
    const counts = Object.fromEntries(entry.kinds.map((kind) => [kind, 0]));
    for (const letter of pattern) counts[entry.letters[letter]] += 1;
    return counts;
  }

  // The kinds of layers that a config names, as far as letters do.
  function kindsOf(config, entry) {
    if (!Object.keys(entry.letters).length) return entry.kinds;
    return [...new Set(String(config.hybrid_override_pattern || ""))].map((letter) => entry.letters[letter]);
  }

  const windowed = (config, entry) => Object.entries(entry.windows).every(([key, value]) => (key in config ? config[key] : (entry.defaults[key] ?? null)) === value);
  const alike = (one, other) => one.length === other.length && one.every((kind) => other.includes(kind));

  function entryFor(config) {
    const type = config.model_type;
    if (typeof type !== "string") throw new Unreadable("It has no model_type, so it is no config.json of a model.");
    const known = entries.filter((entry) => entry.types.includes(type));
    if (!known.length) throw planned(`Models of the type ${JSON.stringify(type)} are read by Python code that this page does not hold.`);
    if (config.quantization_config || config.compression_config) throw planned("It is a quantised model's.");
    const headless = (config.architectures || []).some((name) => !/ForCausalLM$|LMHeadModel$/.test(name));
    if (headless) throw planned("It names a model without an output layer, or a larger one.");
    const found = known.find((entry) =>
      Object.entries(entry.same).every(([word, value]) => holds(config, entry, word) === value) && says(config, entry.layout) && windowed(config, entry) && alike(kindsOf(config, entry), entry.kinds));
    if (!found) throw planned(`It has other layers, windows, biases or norms than the ${type} models in this page.`);
    const refused = found.refused.find((key) => config[key] && !(Array.isArray(config[key]) && !config[key].length));
    if (refused) throw planned(`It sets ${refused}.`);
    return found;
  }

  // The law of one model: that of its entry with numbers in the place of sizes and counts.
  function lawOf(entry, sizes, counts) {
    const numbers = {};
    for (const [axis, size] of Object.entries(sizes)) numbers[`size.${axis}`] = size;
    for (const [kind, count] of Object.entries(counts)) numbers[`layers.${kind}`] = count;
    const nodes = entry.law.nodes.map((node) => (node && node.var in numbers ? numbers[node.var] : node));
    const splits = Object.entries(entry.law.splits_index).filter(([, place]) => Law.value(nodes, place, {}));
    return { ...entry.law, nodes, split_gpus: splits.map(([count]) => Number(count)) };
  }

  function computed(config) {
    const dtype = { float32: "fp32", float16: "fp16", bfloat16: "bf16" };
    const given = config.dtype || config.torch_dtype;
    if (given && !(given in dtype)) throw planned(`Its dtype is ${JSON.stringify(given)}.`);
    return given ? dtype[given] : "bf16";
  }

  // The formats that the config says: those of its dtype, and of states.
  function inFormats(law, config) {
    const found = { ...law, engines: {} };
    for (const [name, engine] of Object.entries(law.engines)) {
      const stored = computed(config);
      const weights = name === "vllm" && stored === "fp32" ? "bf16" : stored;
      const states = { float32: "fp32", float16: "fp16", bfloat16: "bf16" };
      const ssm_state = states[config.mamba_ssm_cache_dtype] || "fp32";
      found.engines[name] = { ...engine, asked: { ...engine.asked, weights, ...engine.computed[weights], ssm_state } };
    }
    return found;
  }

  // A model for the planner; throws Unreadable.
  function model(text, name) {
    let config;
    try {
      // Python writes numbers that JSON does not have, such as the Infinity of time_step_limit.
      config = JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?Infinity\b|NaN\b/g, (word) => (word[0] === '"' ? word : "null")));
    } catch (wrong) {
      throw new Unreadable(`It is no JSON (${wrong.message}).`);
    }
    if (config && typeof config === "object" && !("model_type" in config) && config.config) config = config.config;
    if (!config || typeof config !== "object" || Array.isArray(config)) throw new Unreadable("It holds no JSON object, so it is no config.json.");
    const entry = entryFor(config);
    const sizes = sizesOf(config, entry);
    const counts = countsOf(config, entry);
    for (const [axis, group] of entry.groups) {
      if (sizes[axis] % sizes[group]) throw new Unreadable(`Its sizes contradict each other: ${sizes[axis]} does not divide into ${sizes[group]} groups.`);
    }
    const layers = Object.keys(counts).length ? Object.values(counts).reduce((sum, count) => sum + count, 0) : entry.layers_count;
    const longest = Number.isInteger(config.max_position_embeddings) ? config.max_position_embeddings : null;
    return { name, label: name, told: `${entry.family}, ${layers} layers`, longest_context_tokens: longest, law: inFormats(lawOf(entry, sizes, counts), config) };
  }

  function say(text, bad) {
    const place = document.getElementById("plan-dropped");
    place.textContent = text;
    place.classList.toggle("bad", bad);
  }

  async function take(file) {
    if (!file) return;
    try {
      if (file.size > MOST_BYTES) throw new Unreadable("It is too large to be a config.json.");
      const found = model(await file.text(), file.name.replace(/\.json$/, ""));
      Planner.add(found);
      say(`${found.name} is read: ${found.told}. It is chosen above.`, false);
    } catch (wrong) {
      if (!(wrong instanceof Unreadable)) throw wrong;
      say(`${file.name} cannot be planned here. ${wrong.message}`, true);
    }
  }

  function start(found) {
    entries = found.entries;
    const drop = document.getElementById("plan-drop");
    const over = (is) => (event) => {
      event.preventDefault();
      drop.classList.toggle("over", is);
    };
    drop.addEventListener("dragover", over(true));
    drop.addEventListener("dragleave", over(false));
    drop.addEventListener("drop", (event) => {
      over(false)(event);
      take(event.dataTransfer.files[0]);
    });
    document.getElementById("plan-file").addEventListener("change", (event) => take(event.target.files[0]));
    document.documentElement.classList.add("reads");
  }

  return { start, model, types: () => entries.flatMap((entry) => entry.types) };
})();
