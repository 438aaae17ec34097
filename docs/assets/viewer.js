// Two things that move, from numbers inside the page: a trajectory coloured by uncertainty, and a molecule that turns
// beside its energy. 3Dmol.js, which lies beside this file, is loaded on pages that have one of them.
(() => {
  "use strict";

  const base = new URL(".", document.currentScript.src);
  const radians = Math.PI / 180;

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  };

  const drawn = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  };

  const library = () => new Promise((resolve, reject) => {
    if (window.$3Dmol) return resolve();
    const script = element("script", { src: new URL("3Dmol-min.js", base) });
    script.onload = resolve;
    script.onerror = () => reject(new Error("3Dmol-min.js is missing beside viewer.js"));
    document.head.append(script);
  });

  const xyz = (symbols, positions, comment) =>
    [symbols.length, comment, ...symbols.map((symbol, i) => `${symbol} ${positions[i].join(" ")}`)].join("\n") + "\n";

  const viewerIn = (box) => {
    const dark = document.body.dataset.mdColorScheme === "slate";
    return window.$3Dmol.createViewer(box, { backgroundColor: dark ? "#1e2429" : "white", disableFog: true });
  };

  // From blue over grey to red.
  const colour = (share) => {
    const x = Math.max(0, Math.min(1, share));
    const mix = (a, b, t) => Math.round(a + (b - a) * t);
    const [from, to, t] = x < 0.5 ? [[42, 110, 190], [200, 200, 200], 2 * x] : [[200, 200, 200], [200, 50, 40], 2 * x - 1];
    return `rgb(${from.map((value, i) => mix(value, to[i], t)).join(",")})`;
  };

  const player = (bar, count, show) => {
    const slider = element("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": "position" });
    const button = element("button", { type: "button" }, "Play");
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
    button.addEventListener("click", () => {
      if (timer) return stop();
      button.textContent = "Pause";
      timer = setInterval(() => {
        slider.value = (Number(slider.value) + 1) % count;
        show(Number(slider.value));
      }, 60);
    });
    slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
    bar.append(button, slider);
    return slider;
  };

  const trajectory = (place, data) => {
    const box = element("div", { class: "viewer-canvas" });
    const bar = element("div", { class: "viewer-bar" });
    place.append(box, bar);
    const viewer = viewerIn(box);
    const text = data.frames.map((frame, i) => xyz(data.symbols, frame.positions, `frame ${i}`)).join("");
    const model = viewer.addModelsAsFrames(text, "xyz");
    const largest = Math.max(...data.frames.flatMap((frame) => frame.spread));
    const label = element("span");
    const by = element("select", { "aria-label": "colour" });
    by.append(element("option", { value: "spread" }, "uncertainty"), element("option", { value: "element" }, "element"));
    let now = 0;
    const show = (index) => {
      now = index;
      const spread = data.frames[index].spread;
      Promise.resolve(viewer.setFrame(index)).then(() => {
        const style = (atom) => colour(spread[atom.index] / largest);
        const colours = by.value === "spread" ? { colorfunc: style } : {};
        viewer.setStyle({}, { stick: { radius: 0.13, ...colours }, sphere: { scale: 0.27, ...colours } });
        viewer.render();
      });
      label.textContent = `${(index * data.femtoseconds).toFixed(1)} fs; up to ${Math.max(...spread).toFixed(2)} eV/Å`;
    };
    player(bar, data.frames.length, show);
    by.addEventListener("change", () => show(now));
    bar.append(by, label);
    viewer.zoomTo();
    show(0);
    void model;
  };

  const turned = (positions, axis, angle) => {
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    return positions.map((p) => {
      const along = p[0] * axis[0] + p[1] * axis[1] + p[2] * axis[2];
      const cross = [axis[1] * p[2] - axis[2] * p[1], axis[2] * p[0] - axis[0] * p[2], axis[0] * p[1] - axis[1] * p[0]];
      return p.map((value, i) => value * c + cross[i] * s + axis[i] * along * (1 - c));
    });
  };

  const chart = (data) => {
    const [width, height, left, bottom, top] = [480, 280, 40, 30, 34];
    const values = data.curves.flatMap((curve) => curve.energies);
    const limit = 1.1 * Math.max(...values.map(Math.abs));
    const x = (degrees) => left + (width - left - 10) * degrees / 360;
    const y = (energy) => top + (height - top - bottom) * (limit - energy) / (2 * limit);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "energy over the angle" });
    svg.append(drawn("line", { x1: left, x2: width - 10, y1: y(0), y2: y(0), class: "axis" }));
    svg.append(drawn("line", { x1: left, x2: left, y1: top, y2: height - bottom, class: "axis" }));
    for (const degrees of [0, 90, 180, 270, 360]) {
      svg.append(drawn("text", { x: x(degrees), y: height - bottom + 22, "text-anchor": "middle" }, `${degrees}°`));
    }
    const size = 10 ** Math.floor(Math.log10(limit / 1.1));
    const step = size * Math.floor(limit / 1.1 / size);
    for (const energy of [-step, 0, step]) {
      svg.append(drawn("text", { x: left - 5, y: y(energy) + 4, "text-anchor": "end" }, String(energy).replace("-", "−")));
    }
    svg.append(drawn("text", { x: left + 8, y: top + 2 }, "energy − mean (meV)"));
    data.curves.forEach((curve, i) => {
      const points = curve.energies.map((energy, k) => `${x(data.degrees[k]).toFixed(1)},${y(energy).toFixed(1)}`);
      svg.append(drawn("polyline", { points: points.join(" "), class: `curve curve-${i}` }));
      const name = `${curve.potential}, ${curve.orientations} orientations`;
      svg.append(drawn("text", { x: left + i * 215, y: 14, class: `legend-${i}` }, name));
    });
    const mark = drawn("line", { x1: x(0), x2: x(0), y1: top, y2: height - bottom, class: "axis" });
    svg.append(mark);
    return { svg, at: (degrees) => { mark.setAttribute("x1", x(degrees)); mark.setAttribute("x2", x(degrees)); } };
  };

  const turning = (place, data) => {
    const box = element("div", { class: "viewer-canvas" });
    const bar = element("div", { class: "viewer-bar" });
    const { svg, at } = chart(data);
    place.append(box, svg, bar);
    const viewer = viewerIn(box);
    const text = data.degrees.map((degrees) => xyz(data.symbols, turned(data.positions, data.axis, radians * degrees), "")).join("");
    viewer.addModelsAsFrames(text, "xyz");
    viewer.setStyle({}, { stick: { radius: 0.13 }, sphere: { scale: 0.27 } });
    viewer.zoomTo();
    viewer.render();
    const label = element("span");
    player(bar, data.degrees.length, (index) => {
      Promise.resolve(viewer.setFrame(index)).then(() => viewer.render());
      at(data.degrees[index]);
      label.textContent = data.curves.map((curve) => `${curve.energies[index].toFixed(2)}`).join(" / ") + " meV";
    });
    bar.append(label);
  };

  const start = () => {
    const places = [...document.querySelectorAll(".viewer[data-source], .turning[data-source]")];
    if (!places.length) return;
    library().then(() => places.forEach((place) => {
      const data = JSON.parse(document.getElementById(`data-${place.dataset.source}`).textContent);
      (place.classList.contains("turning") ? turning : trajectory)(place, data);
    })).catch((error) => places.forEach((place) => { place.textContent = `The viewer does not work here: ${error.message}`; }));
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
