// The ranking page. The form's own radios and checkboxes are the only state; the strip at the foot is drawn from them.
"use strict";
(() => {
  const form = document.getElementById("rank");
  const words = JSON.parse(form.dataset.words);
  const K = Number(form.dataset.k);
  const tiesAllowed = "ties" in form.dataset;
  const strip = form.querySelector(".strip");
  const note = strip.querySelector(".note");
  const savedNote = strip.querySelector(".saved");
  const status = strip.querySelector("[role=status]");
  const submitButton = strip.querySelector(".primary");
  const cards = [...form.querySelectorAll(".answer")];
  const letterOf = (id) => cardOf(id).dataset.letter;
  const cardOf = (id) => cards.find((card) => card.dataset.id === id);
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (gap, name) => values[name] ?? gap);
  const store = { // A browser may forbid storage: then nothing is kept on the device, and all else works.
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* kept by the server alone */ } },
    remove(key) { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } },
  };

  // ── State: read from the form, written to the form ──────────────────────
  const choice = (name) => Number(new FormData(form).get(name)) || null;
  const placeOf = (id) => choice("place_" + id);
  const isTextField = (element) => element.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");

  function read() {
    const data = new FormData(form);
    const state = { places: {}, ratings: {}, labels: {}, rationale: data.get("rationale") };
    for (const { dataset: { id } } of cards) {
      state.places[id] = Number(data.get("place_" + id)) || null;
      state.ratings[id] = Number(data.get("rating_" + id)) || null;
      state.labels[id] = data.getAll("flag_" + id);
    }
    return state;
  }

  function check(name, value) {
    for (const input of form.querySelectorAll(`input[name="${CSS.escape(name)}"]`)) input.checked = input.value === String(value ?? "");
  }

  function write(state) {
    for (const { dataset: { id } } of cards) {
      check("place_" + id, state.places?.[id]);
      check("rating_" + id, state.ratings?.[id]);
      for (const flag of form.querySelectorAll(`input[name="${CSS.escape("flag_" + id)}"]`)) flag.checked = !!state.labels?.[id]?.includes(flag.value);
    }
  }

  // ── Placing, undo, redo ─────────────────────────────────────────────────
  let current = cards[0];
  let last = read();
  let undone = [];
  const done = [];
  const unplaced = () => cards.filter((card) => !placeOf(card.dataset.id));
  const others = (id, place) => cards.map((card) => card.dataset.id).filter((other) => other !== id && place && placeOf(other) === place);
  const namesOf = (ids) => ids.map(letterOf).join(", ");

  function place(id, to, { swap = false } = {}) {
    const from = placeOf(id);
    check("place_" + id, to);
    settle(id, swap ? from : null);
  }

  // After any change of a place: without ties the card that stood there gives way, then all is told, drawn and saved.
  function settle(id, giveWayTo = null) {
    const to = placeOf(id);
    const there = others(id, to);
    if (!tiesAllowed) there.forEach((other) => check("place_" + other, giveWayTo));
    const name = words.places[to];
    note.textContent = !tiesAllowed && there.length && !giveWayTo ? fill(words.bumped, { others: namesOf(there) }) : "";
    let message = to ? fill(words.placed, { letter: letterOf(id), place: name }) : fill(words.unplaced, { letter: letterOf(id) });
    if (tiesAllowed && there.length) message = fill(words.tied, { letter: letterOf(id), place: name, others: namesOf(there) });
    if (!unplaced().length) message += " " + words.allPlaced;
    changed(message);
  }

  function changed(message) {
    const state = read();
    const pick = ({ places, ratings, labels }) => JSON.stringify([places, ratings, labels]);
    if (pick(state) !== pick(last)) {
      done.push(last);
      undone = [];
    }
    last = state;
    if (message) say(message);
    draw();
    save();
  }

  function step(from, to, message) {
    if (!from.length) return;
    to.push(read());
    write(from.pop());
    last = read();
    say(message);
    draw();
    save();
  }

  function say(message) {
    status.textContent = status.textContent === message ? message + "\u00a0" : message;
  }

  // ── The strip ───────────────────────────────────────────────────────────
  function draw() {
    const focused = document.activeElement?.dataset?.chip;
    for (const box of strip.querySelectorAll(".place")) {
      const inside = cards.filter((card) => placeOf(card.dataset.id) === (Number(box.dataset.place) || null));
      box.classList.toggle("full", inside.length > 0 && box.dataset.place !== "");
      const chips = inside.map((card, index) => (index && box.dataset.place ? [tieMark(), chip(card)] : [chip(card)])).flat();
      box.querySelector(".chips").replaceChildren(...chips);
    }
    if (focused) strip.querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    submitButton.setAttribute("aria-disabled", String(!isReady()));
  }

  function chip(card) {
    const { id, letter } = card.dataset;
    const button = document.createElement("button");
    const to = placeOf(id);
    button.type = "button";
    button.className = "chip" + (to ? "" : " free") + (card === current ? " here" : "");
    button.dataset.chip = id;
    button.textContent = letter;
    button.setAttribute("aria-label", fill(words.chip, { letter, place: to ? words.places[to] : words.toPlace }));
    return button;
  }

  function tieMark() {
    const mark = document.createElement("span");
    mark.className = "tie";
    mark.textContent = "=";
    return mark;
  }

  function look(card, { focus = true } = {}) {
    current = card;
    cards.forEach((other) => other.classList.toggle("here", other === card));
    strip.querySelectorAll(".chip").forEach((other) => other.classList.toggle("here", other.dataset.chip === card.dataset.id));
    if (focus) card.focus({ preventScroll: true });
    if (focus) card.scrollIntoView({ block: "nearest" });
  }

  // ── Dragging a chip, by mouse or finger ─────────────────────────────────
  const FAR = 8;
  let drag = null;
  let wasDragged = false;

  strip.addEventListener("pointerdown", (event) => {
    const held = event.target.closest(".chip");
    if (!held || event.button || drag) return;
    wasDragged = false;
    drag = { held, pointer: event.pointerId, x: event.clientX, y: event.clientY, box: null };
  });
  strip.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drag?.pointer) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!wasDragged && Math.hypot(x, y) < FAR) return;
    if (!wasDragged) strip.setPointerCapture(drag.pointer);
    wasDragged = true;
    drag.held.classList.add("held");
    drag.held.style.translate = `${x}px ${y}px`;
    drag.box?.classList.remove("target");
    drag.box = document.elementFromPoint(event.clientX, event.clientY)?.closest(".strip .place") ?? null;
    drag.box?.classList.add("target");
  });
  function drop(event, keep) {
    if (event.pointerId !== drag?.pointer) return;
    const { held, box } = drag;
    drag = null;
    held.classList.remove("held");
    held.style.translate = "";
    box?.classList.remove("target");
    if (keep && wasDragged && box) place(held.dataset.chip, Number(box.dataset.place) || null);
  }
  strip.addEventListener("pointerup", (event) => drop(event, true));
  strip.addEventListener("pointercancel", (event) => drop(event, false));
  strip.addEventListener("click", (event) => {
    const pressed = event.target.closest(".chip");
    if (pressed && !wasDragged) look(cardOf(pressed.dataset.chip), { focus: event.detail > 0 });
    wasDragged = false;
  });

  // ── Buttons on the cards: a second press takes a place or a rating away ──
  form.addEventListener("change", (event) => {
    const { name = "" } = event.target;
    if (name.startsWith("place_")) settle(name.slice(6));
    else changed();
  });
  form.addEventListener("input", (event) => { if (event.target.id === "rationale") save(); });
  let pressed = null;
  form.addEventListener("pointerdown", (event) => {
    const input = event.target.closest(".cell")?.querySelector("input");
    pressed = input?.checked ? input : null;
  });
  form.addEventListener("click", (event) => {
    if (event.target !== pressed || !event.detail) return;
    pressed = null;
    check(event.target.name, null);
    if (event.target.name.startsWith("place_")) settle(event.target.name.slice(6));
    else changed();
  });
  form.addEventListener("focusin", (event) => {
    const card = event.target.closest(".answer");
    if (card && card !== current) look(card, { focus: false });
  });
  for (const button of form.querySelectorAll("button[data-layout]")) {
    button.addEventListener("click", () => setLayout(button.dataset.layout));
  }
  function setLayout(layout) {
    form.querySelector(".answers").dataset.layout = layout;
    form.querySelectorAll("button[data-layout]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.layout === layout)));
    store.set("rankloop-layout", layout);
  }

  // ── Keys ────────────────────────────────────────────────────────────────
  const useKeys = document.getElementById("use-keys");
  const setKeys = (on) => { document.body.dataset.keys = on ? "on" : "off"; useKeys.checked = on; };
  useKeys.addEventListener("change", () => {
    setKeys(useKeys.checked);
    store.set("rankloop-keys", useKeys.checked ? "on" : "off");
    say(useKeys.checked ? words.keysOn : words.keysOff);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && drag) return drop({ pointerId: drag.pointer }, false);
    if (!useKeys.checked || event.isComposing || event.altKey || document.querySelector("dialog[open]") || isTextField(event.target)) return;
    if (press(event)) event.preventDefault();
  });

  // What a key does; true when it was ours.
  function press(event) {
    const { key, code, shiftKey, target } = event;
    const id = current.dataset.id;
    const onCard = target === current || target === document.body;
    if (event.ctrlKey || event.metaKey) return undoKey(event);
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1] ?? (/^\d$/.test(key) ? key : null);
    if (digit !== null && shiftKey && code.startsWith("Digit")) return rate(id, Number(digit));
    if (digit === "0" || key === "Backspace") return place(id, null), true;
    if (digit !== null && digit <= K) return placeAndGoOn(id, Number(digit)), true;
    if (key === "?") return open("keys");
    if (shiftKey && key !== "Tab") return false;
    if (key === "g" || key === "s") return open(key === "g" ? "guidelines" : "skip");
    if (key === "l") return current.querySelector(".flags input")?.focus(), true;
    if (key === "Escape") return look(current), true;
    if (key === "Tab") return target === current && walk(shiftKey ? -1 : 1);
    if (key === "Enter") return onCard && (submit(), true);
    if (key === "ArrowLeft" || key === "ArrowRight") return (onCard || !!target.dataset.chip) && move(target.dataset.chip ?? id, key === "ArrowLeft" ? -1 : 1);
    return false;
  }

  function undoKey({ key, shiftKey }) {
    const letter = key.toLowerCase();
    if (letter === "z" && !shiftKey) return step(done, undone, words.undone), true;
    if ((letter === "z" && shiftKey) || letter === "y") return step(undone, done, words.redone), true;
    return false;
  }

  function placeAndGoOn(id, to) {
    place(id, to);
    const after = [...cards.slice(cards.indexOf(current) + 1), ...cards].find((card) => !placeOf(card.dataset.id));
    look(after ?? current);
    if (after) say(`${status.textContent} ${fill(words.next, { letter: after.dataset.letter })}`);
  }

  function rate(id, rating) {
    if (rating < 1 || rating > 7) return false;
    check("rating_" + id, choice("rating_" + id) === rating ? null : rating);
    changed();
    return true;
  }

  function move(id, by) {
    const from = placeOf(id);
    const to = from ? Math.min(K, Math.max(1, from + by)) : by > 0 ? 1 : K;
    if (to !== from) place(id, to, { swap: true });
    return true;
  }

  function walk(by) {
    const next = cards[cards.indexOf(current) + by];
    if (next) look(next);
    return !!next;
  }

  function open(name) {
    document.getElementById(name).showModal();
    return true;
  }

  // ── Drafts: the server has them; the device keeps what the server has not yet heard ──
  const draftKey = "rankloop-draft-" + form.dataset.lease;
  let saveTimer = 0;
  let isGone = false;

  function save() {
    store.set(draftKey, JSON.stringify({ savedAt: Date.now(), state: read() }));
    clearTimeout(saveTimer);
    saveTimer = setTimeout(sendDraft, 700);
  }

  // One after the other, so that an older draft never overtakes a newer one.
  let drafts = Promise.resolve();
  const sendDraft = () => { clearTimeout(saveTimer); drafts = drafts.then(postDraft); };

  async function postDraft() {
    const kept = store.get(draftKey);
    if (isGone) return;
    try {
      const answer = await fetch(form.dataset.draftUrl, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify(read()), keepalive: true });
      if (!answer.ok) throw new Error(answer.status);
      if (store.get(draftKey) === kept) store.remove(draftKey);
      savedNote.textContent = words.saved;
      const { expires_in_seconds: seconds } = await answer.json().catch(() => ({}));
      if (seconds) watchExpiry(seconds);
    } catch {
      savedNote.textContent = words.local;
    }
  }

  function restore() {
    const kept = JSON.parse(store.get(draftKey) ?? "null");
    if (!kept || kept.savedAt < Date.parse(form.dataset.savedAt || 0)) return;
    write(kept.state);
    form.elements.rationale.value = kept.state.rationale;
    last = read();
    say(words.restored);
    sendDraft();
  }

  const unsent = () => store.get(draftKey) !== null;
  window.addEventListener("online", () => unsent() && sendDraft());
  document.addEventListener("visibilitychange", () => document.hidden && unsent() && sendDraft());

  // ── Submitting: once, and again for as long as nobody answers ───────────
  let isSending = false;
  const RETRY_SECONDS = [2, 4, 8, 15, 30];
  const isReady = () => unplaced().length === 0 || ("partial" in form.dataset && cards.length - unplaced().length >= 2);

  function submit() {
    if (isSending) return;
    if (!isReady()) {
      note.textContent = fill(words.missing, { letters: unplaced().map((card) => card.dataset.letter).join(", ") });
      return look(unplaced()[0]);
    }
    isSending = true;
    clearTimeout(saveTimer);
    const body = new URLSearchParams(new FormData(form));
    form.querySelector("main").inert = true;
    strip.querySelectorAll(".chip").forEach((button) => { button.disabled = true; });
    send(body, 0);
  }

  async function send(body, attempt) {
    submitButton.setAttribute("aria-disabled", "true");
    say(words.sending);
    const wait = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "text/html" } });
      if (answer.status < 500) return leave(answer);
      note.textContent = fill(words.refused, { status: answer.status, n: wait });
    } catch {
      note.textContent = fill(words.lost, { n: wait });
    }
    setTimeout(send, wait * 1000, body, attempt + 1);
  }

  // Taken: go where the server points. Refused: send the plain form, whose answer is a page that says why.
  function leave(answer) {
    isGone = true;
    if (!answer.ok) return form.querySelector("main").inert = false, form.submit();
    store.remove(draftKey);
    location.assign(answer.url);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  document.querySelector("[data-skip]").addEventListener("submit", () => { isGone = true; clearTimeout(saveTimer); store.remove(draftKey); });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());

  // ── Whose task it is, and for how long ──────────────────────────────────
  let expiryTimers = [];
  function watchExpiry(seconds) {
    expiryTimers.forEach(clearTimeout);
    const tell = (text, after) => setTimeout(() => { note.textContent = text; }, Math.max(0, after) * 1000);
    if (seconds > 864000) return;
    expiryTimers = [tell(fill(words.expiring, { n: 2 }), seconds - 120), tell(words.expired, seconds)];
  }

  setKeys(store.get("rankloop-keys") !== "off");
  setLayout(store.get("rankloop-layout") ?? "grid");
  restore();
  draw();
  watchExpiry(Number(form.dataset.expiresIn));
  look(unplaced()[0] ?? cards[0], { focus: false });
  if (!document.querySelector("[data-focus]")) current.focus({ preventScroll: true });
})();
