/* Zoom and keys. The page's texts come from the server, escaped; this file puts no text into the page. */
(() => {
  const click = (id) => document.querySelector(`#${id}`)?.click();
  const field = (id) => document.querySelector(`#${id} textarea, #${id} input`);
  const panes = () => [...document.querySelectorAll(".rv .pane")];
  const turn = () => document.querySelector("#message [data-turn]")?.dataset.turn;
  let waitsFor = null, refused = null, pointed = null, drag = null;

  /* A pane's state: s = screen pixels per fitted pixel, x and y = place of the plane. */
  const fit = (pane, whole = true) => {
    const img = pane.querySelector("img"), plane = pane.querySelector(".plane");
    if (!img || !plane || !img.naturalWidth || !pane.clientWidth) return;
    const w = pane.clientWidth, h = pane.clientHeight, old = pane.view && { ...pane.view, ...pane.home };
    const f = Math.min(w / img.naturalWidth, h / img.naturalHeight);
    img.style.width = `${img.naturalWidth * f}px`;
    const x = (w - img.naturalWidth * f) / 2, y = (h - img.naturalHeight * f) / 2;
    pane.view = { s: 1, x, y };
    if (!whole && old && pane.view.s !== old.s) { /* another size of the pane: the same spot stays in the middle */
      const k = f / old.f;
      pane.view = { s: old.s, x: w / 2 - (old.w / 2 - old.x) * k, y: h / 2 - (old.h / 2 - old.y) * k };
    }
    pane.home = { homeX: x, homeY: y, f, w, h };
    draw(pane);
  };
  const draw = (pane) => {
    const plane = pane.querySelector(".plane"), { s, x, y } = pane.view;
    plane.style.transform = `translate(${x}px, ${y}px) scale(${s})`;
    plane.style.setProperty("--s", s);
    plane.classList.toggle("close", s * pane.home.f > 3);
    pane.dataset.zoom = s.toFixed(2);
  };
  const zoom = (pane, factor, cx, cy) => {
    if (!pane?.view) return;
    const v = pane.view, s = Math.min(40, Math.max(1, v.s * factor));
    if (s === 1) { pane.view = { s: 1, x: pane.home.homeX, y: pane.home.homeY }; return draw(pane); }
    pane.view = { s, x: cx - (cx - v.x) * (s / v.s), y: cy - (cy - v.y) * (s / v.s) };
    draw(pane);
  };
  const middle = (pane, factor) => zoom(pane, factor, pane.clientWidth / 2, pane.clientHeight / 2);
  const pan = (pane, dx, dy) => { if (pane?.view) { pane.view.x += dx; pane.view.y += dy; draw(pane); } };
  const active = () => (pointed?.isConnected ? pointed : panes()[0]);
  const refit = (whole) => panes().forEach((pane) => fit(pane, whole));

  document.addEventListener("load", (e) => { const p = e.target.closest?.(".rv .pane"); if (p) fit(p); }, true);
  document.addEventListener("error", (e) => {
    const pane = e.target.closest?.(".rv .pane");
    if (pane) { pane.textContent = "this image cannot be shown"; pane.classList.add("failed"); }
  }, true);
  window.addEventListener("resize", () => refit(false));
  document.addEventListener("wheel", (e) => {
    const pane = e.target.closest?.(".rv .pane");
    if (!pane?.view) return;
    e.preventDefault();
    const at = pane.getBoundingClientRect();
    zoom(pane, Math.exp(-e.deltaY / 400), e.clientX - at.left, e.clientY - at.top);
  }, { passive: false });
  document.addEventListener("pointerdown", (e) => {
    const pane = e.target.closest?.(".rv .pane");
    if (pane?.view) { pointed = pane; drag = { pane, x: e.clientX, y: e.clientY }; e.preventDefault(); document.activeElement?.blur(); }
  });
  document.addEventListener("pointermove", (e) => {
    if (drag) { pan(drag.pane, e.clientX - drag.x, e.clientY - drag.y); drag.x = e.clientX; drag.y = e.clientY; }
    else { const pane = e.target.closest?.(".rv .pane"); if (pane) pointed = pane; }
  });
  document.addEventListener("pointerup", () => { drag = null; });
  document.addEventListener("dblclick", (e) => { const p = e.target.closest?.(".rv .pane"); if (p) fit(p); });

  /* The second click of a double click would fall on the next item, which nobody has seen. */
  document.addEventListener("click", (e) => {
    if (e.detail > 1 && e.target.closest?.("#accept, #reject, #save, #later, #back")) {
      e.preventDefault(); e.stopImmediatePropagation();
    }
  }, true);
  /* A decision is taken once per item in view: further keys wait until the server has answered. */
  const decide = (id) => {
    if (waitsFor !== null && waitsFor === turn()) return;
    waitsFor = turn();
    click(id);
  };
  document.addEventListener("click", (e) => {
    const button = e.target.closest?.("#accept, #reject, #save");
    if (!button) return;
    refused = button.id;
    /* until the server has answered, the line must not say "Saved" of the decision before */
    document.querySelector("#message p")?.classList.add("sending");
  });
  const enlarge = (number) => {
    const figures = [...document.querySelectorAll(".rv figure.view")], one = figures[number - 1];
    if (!one) return;
    const on = !one.classList.contains("wide");
    figures.forEach((f) => f.classList.toggle("wide", f === one && on));
    pointed = one.querySelector(".pane");
    refit(false);
  };
  const step = 60, LEAVING = ["a", "r", "e", "n", "p"];
  const keys = {
    a: () => decide("accept"), r: () => decide("reject"), e: () => click("edit"), n: () => decide("later"),
    p: () => decide("back"), i: () => field("reason")?.focus(),
    o: () => document.querySelector(".rv")?.classList.toggle("bare"),
    1: () => enlarge(1), 2: () => enlarge(2), 3: () => enlarge(3),
    0: () => refit(true), "+": () => middle(active(), 1.5), "=": () => middle(active(), 1.5), "-": () => middle(active(), 1 / 1.5),
    ArrowLeft: () => pan(active(), step, 0), ArrowRight: () => pan(active(), -step, 0),
    ArrowUp: () => pan(active(), 0, step), ArrowDown: () => pan(active(), 0, -step),
  };
  document.addEventListener("keydown", (e) => {
    const typing = e.target.closest?.("textarea, input:not([type=radio])");
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      if (document.querySelector("#save")?.offsetParent) return decide("save");
      if (e.target.closest?.("#reason")) return decide(refused === "accept" ? "accept" : "reject");
      return;
    }
    if (e.key === "Enter" && e.target.closest?.("#reviewer")) { e.preventDefault(); return click("start"); }
    if (e.key === "Escape") {
      if (typing) typing.blur(); else if (document.querySelector("#cancel")?.offsetParent) click("cancel");
      return;
    }
    if (typing || e.ctrlKey || e.metaKey || e.altKey || e.repeat || !document.querySelector(".rv")) return;
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    /* while the editor is open, a decision key would take the old text and lose the new one: save or cancel first */
    if (LEAVING.includes(key) && document.querySelector("#save")?.offsetParent) return e.preventDefault();
    if (keys[key]) { e.preventDefault(); keys[key](); }
  });
  /* What is to be written comes forward, as soon as it is there: the editor opens after the line that says so. */
  new MutationObserver(() => {
    const note = document.querySelector("#message [data-needs]"), wanted = note && field(note.dataset.needs);
    if (wanted?.offsetParent && note.dataset.seen !== "1") { note.dataset.seen = "1"; wanted.focus(); }
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["class", "style"] });
})();
