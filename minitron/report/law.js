// Computes expressions from their nodes, as minitron/memory/expressions.py says what these are.  Whole numbers of any
// size, exactly; nothing here knows what is computed.
"use strict";

const Law = (() => {
  const flag = (holds) => (holds ? 1n : 0n);
  const floored = (a, b) => {
    const quotient = a / b;
    return a % b !== 0n && a < 0n !== b < 0n ? quotient - 1n : quotient;
  };
  const gcd = (a, b) => {
    [a, b] = [a < 0n ? -a : a, b < 0n ? -b : b];
    while (b) [a, b] = [b, a % b];
    return a;
  };
  const OPERATIONS = {
    "+": (a, b) => a + b,
    "-": (a, b) => a - b,
    "*": (a, b) => a * b,
    "//": floored,
    "%": (a, b) => a - b * floored(a, b),
    max: (a, b) => (a < b ? b : a),
    min: (a, b) => (a < b ? a : b),
    gcd,
    "==": (a, b) => flag(a === b),
    "!=": (a, b) => flag(a !== b),
    "<": (a, b) => flag(a < b),
    "<=": (a, b) => flag(a <= b),
    "&": (a, b) => a & b,
    "|": (a, b) => a | b,
  };

  // What the node at a place comes to; `found` holds what has been computed for the same `asked`.
  function value(nodes, place, asked, found = new Map()) {
    if (found.has(place)) return found.get(place);
    const node = nodes[place];
    const of = (at) => value(nodes, at, asked, found);
    let result;
    if (Array.isArray(node)) {
      const [operation, ...parts] = node;
      if (operation === "if") result = of(parts[0]) ? of(parts[1]) : of(parts[2]);
      else result = OPERATIONS[operation](...parts.map(of));
    } else if (node !== null && typeof node === "object") {
      result = "var" in node ? BigInt(asked[node.var]) : of(node.cases[asked[node.by]]);
    } else {
      result = BigInt(node);
    }
    found.set(place, result);
    return result;
  }

  // line -> bytes, under one engine.
  function lines(law, engine, asked) {
    const found = new Map();
    const places = Object.entries(law.engines[engine].lines_index);
    return Object.fromEntries(places.map(([name, place]) => [name, value(law.nodes, place, asked, found)]));
  }

  function total(law, engine, asked) {
    return Object.values(lines(law, engine, asked)).reduce((sum, bytes) => sum + bytes, 0n);
  }

  const UNLIMITED = 1n << 40n;

  // The largest whole number for which `good` holds, where it holds up to some number and no further.
  function largest(good) {
    if (!good(1n)) return 0n;
    let high = 2n;
    while (high < UNLIMITED && good(high)) high *= 2n;
    if (high >= UNLIMITED) return UNLIMITED;
    let low = high / 2n;
    while (high - low > 1n) {
      const middle = (low + high) / 2n;
      if (good(middle)) low = middle;
      else high = middle;
    }
    return low;
  }

  // The largest `context` or `batch` at which a model stays within so many bytes.
  function most(law, engine, asked, quantity, available) {
    return largest((number) => total(law, engine, { ...asked, [quantity]: number }) <= BigInt(available));
  }

  // The command as text.
  function command(law, engine, asked, share) {
    const { serve, numbers_index } = law.engines[engine];
    const told = { ...asked, share };
    for (const [name, place] of Object.entries(numbers_index)) told[name] = value(law.nodes, place, asked);
    return serve
      .map((piece) => (piece.by ? piece.texts[asked[piece.by]] : piece.text))
      .filter((text) => text)
      .join(" ")
      .replace(/%(\w+)%/g, (all, name) => (name in told ? String(told[name]) : all));
  }

  const TIGHTNESS = { "*": 3, "//": 3, "%": 3, "+": 2, "-": 2, "&": 1, "|": 1 };
  const SIGNS = { "*": "×" };

  // The expression for a reader, with the formats that are asked in their places; null where it is too long.
  function told(nodes, place, asked, most = 900) {
    let left = most;
    const of = (at, outer) => {
      if (left < 0) return "";
      const node = nodes[at];
      let text;
      if (Array.isArray(node)) {
        const [operation, ...parts] = node;
        const own = TIGHTNESS[operation];
        if (own) {
          text = `${of(parts[0], own)} ${SIGNS[operation] || operation} ${of(parts[1], own + 0.5)}`;
          if (own < outer) text = `(${text})`;
        } else if (operation in OPERATIONS && !/^\w/.test(operation)) {
          text = `(${of(parts[0], 1)} ${operation} ${of(parts[1], 1)})`;
        } else {
          text = `${operation}(${parts.map((part) => of(part, 0)).join(", ")})`;
        }
      } else if (node !== null && typeof node === "object") {
        return "var" in node ? node.var : of(node.cases[asked[node.by]], outer);
      } else {
        text = BigInt(node).toLocaleString("en");
      }
      left -= 6;
      return text;
    };
    const text = of(place, 0);
    return left < 0 ? null : text;
  }

  return { value, lines, total, most, command, told, UNLIMITED };
})();
