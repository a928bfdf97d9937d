// The page of many models: unpacks what it holds, and starts.
"use strict";

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

unpacked("packed").then((found) => {
  Planner.start(found, true);
  if (document.getElementById("reading")) unpacked("reading").then(Reading.start);
}).catch((wrong) => {
  document.getElementById("plan-verdict").textContent =
    `This browser could not unpack the page (${wrong.message}); open it in one of 2023 or later.`;
});
