/* The live view of a cell: one chip per rank, and the log of the rank that is selected.

   kernel ── batch ──▶ Store ──▶ Log per rank, and one of all      what is known: one per model
                         └─────▶ View                              what is drawn: one per place
   kernel ◀── hello, resend, stop ── Store

   A batch says what is new, ten times a second at most; `widget.py` has the list of its fields. The
   Store hears every batch from the first one on, whether the view is drawn or not. Text of the ranks
   reaches the page as text only, never as HTML. */

const MAX_ROWS = 5000; // of one log
const MAX_COLUMNS = 10000; // a longer line goes on in the next row
const SCREEN_ROWS = 100; // that the cursor can go back to
const SCREEN_COLUMNS = 400; // that a cursor move alone can reach
const FEW = 4; // ranks that stand side by side in any window
const MANY = 16; // ranks; with more of them a chip is its number only
const STOP_AGAIN_MS = 2000;
const HELLO_MS = [50, 300, 1000, 3000]; // the way past a busy kernel may take a while to open
const SPEAK_MS = 5000; // between two things said to a screen reader, failures excepted

const STATES = {
  running: { sign: "▶\uFE0E", word: "running" },
  waiting: { sign: "◔", word: "waiting" },
  asking: { sign: "?", word: "asking" },
  failed: { sign: "✗", word: "failed" },
  stopped: { sign: "■\uFE0E", word: "stopped" },
  done: { sign: "✓", word: "done" },
  dead: { sign: "☠\uFE0E", word: "dead" },
};
const IN_SUMMARY = ["failed", "dead", "asking", "waiting", "running", "stopped", "done"];
const IS_BAD = new Set(["failed", "dead"]);

// Colours --------------------------------------------------------------------------------------
// The same as those of the final output: mid-tones that can be read on white and on black.

const BASE = ["", "#e0453f", "#258f46", "#a0790a", "#3f7fe8", "#c24fc0", "#13899a", ""];
const GREY = "#7d7d7d";
const TINTS = ["#00000033", ...BASE.slice(1, 7).map((color) => `${color}40`), "#80808040"];
const SWITCHES = {
  1: ["bold", true],
  2: ["dim", true],
  3: ["italic", true],
  4: ["underlined", true],
  7: ["inverse", true],
  9: ["struck", true],
  23: ["italic", false],
  24: ["underlined", false],
  27: ["inverse", false],
  29: ["struck", false],
};
const PLAIN = Object.freeze({});
const styles = new Map(); // equal styles are one object, so that they can be compared with ===
const MAX_STYLES = 4096;

function intern(style) {
  const entries = Object.entries(style).filter(([, value]) => value);
  if (!entries.length) return PLAIN;
  const key = JSON.stringify(entries.sort());
  if (!styles.has(key)) {
    if (styles.size >= MAX_STYLES) styles.clear();
    styles.set(key, { ...Object.fromEntries(entries), css: cssOf(Object.fromEntries(entries)) });
  }
  return styles.get(key);
}

function cssOf(style) {
  let { color, background } = style;
  if (style.inverse) [color, background] = ["#ffffff", color || GREY];
  const lines = [style.underlined && "underline", style.struck && "line-through"].filter(Boolean);
  const rules = {
    color,
    background,
    "font-weight": style.bold && "bold",
    opacity: style.dim && "0.7",
    "font-style": style.italic && "italic",
    "text-decoration": lines.join(" "),
  };
  const used = Object.entries(rules).filter(([, value]) => value);
  return used.map(([name, value]) => `${name}:${value}`).join(";");
}

/* Return the style that follows `style` after the escape sequence ESC [ parameters m. */
function afterSgr(style, parameters) {
  const codes = parameters.replaceAll(":", ";").split(";").map(Number);
  let next = { ...style, css: undefined };
  while (codes.length) {
    const code = codes.shift();
    if (!code) next = {};
    else if (code in SWITCHES) next[SWITCHES[code][0]] = SWITCHES[code][1];
    else if (code === 22) next.bold = next.dim = false;
    else if (code === 38) next.color = takeColor(codes);
    else if (code === 48) next.background = takeColor(codes, "66");
    else if (code === 39) next.color = "";
    else if (code === 49) next.background = "";
    else if (code >= 30 && code <= 37) next.color = BASE[code - 30];
    else if (code >= 90 && code <= 97) next.color = BASE[code - 90] || (code === 90 ? GREY : "");
    else if (code >= 40 && code <= 47) next.background = TINTS[code - 40];
    else if (code >= 100 && code <= 107) next.background = TINTS[code - 100];
  }
  return intern(next);
}

function takeColor(codes, alpha = "") {
  const kind = codes.shift();
  const numbers = codes.splice(0, kind === 5 ? 1 : kind === 2 ? 3 : 0);
  const isComplete = numbers.length === { 5: 1, 2: 3 }[kind];
  if (!isComplete) return "";
  const bytes = (kind === 2 ? numbers : palette(numbers[0])).map((n) => Math.min(n || 0, 255));
  return `#${bytes.map((n) => n.toString(16).padStart(2, "0")).join("")}${alpha}`;
}

function palette(number) {
  const index = Math.min(number || 0, 255);
  if (index < 16) {
    const color = BASE[index % 8] || GREY;
    return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  }
  if (index >= 232) return Array(3).fill(8 + 10 * (index - 232));
  const steps = [0, 95, 135, 175, 215, 255];
  const rest = index - 16;
  return [steps[Math.floor(rest / 36)], steps[Math.floor(rest / 6) % 6], steps[rest % 6]];
}

// Logs -----------------------------------------------------------------------------------------

/* One line: pieces of text, each in one style. `number` counts up, also when lines are dropped. */
class Row {
  constructor(kind) {
    this.kind = kind;
    this.label = "";
    this.number = -1;
    this.length = 0;
    this.spans = [];
  }

  get text() {
    return this.label + this.spans.map(([, text]) => text).join("");
  }

  write(column, text, style) {
    if (column > this.length) this.append(" ".repeat(column - this.length), PLAIN);
    if (column < this.length) this.overwrite(column, text, style);
    else this.append(text, style);
  }

  append(text, style) {
    const last = this.spans.at(-1);
    if (last && last[0] === style) last[1] += text;
    else this.spans.push([style, text]);
    this.length += text.length;
  }

  overwrite(column, text, style) {
    const before = this.cutOut(0, column);
    const after = this.cutOut(column + text.length, this.length);
    this.spans = before;
    this.length = column;
    this.append(text, style);
    for (const [afterStyle, afterText] of after) this.append(afterText, afterStyle);
  }

  cut(column) {
    this.spans = this.cutOut(0, column);
    this.length = Math.min(this.length, column);
  }

  cutOut(begin, end) {
    const found = [];
    let at = 0;
    for (const [style, text] of this.spans) {
      const piece = text.slice(Math.max(begin - at, 0), Math.max(end - at, 0));
      if (piece) found.push([style, piece]);
      at += text.length;
    }
    return found;
  }
}

const TOKENS = new RegExp(
  [
    "\\x1b\\[([0-9;:]{0,99})m",
    "\\x1b\\[([0-9]{0,5})([ABCDGJK])",
    "([^\\x00-\\x08\\x0a-\\x1f\\x7f]+)",
    "([\\n\\r\\b])",
    "\\x1b\\[[0-?]*[ -/]*[@-~]",
    "\\x1b\\][^\\x07\\x1b\\n]*(?:\\x07|\\x1b\\\\)?",
    "\\x1b[ -/]*[0-~]",
    "[\\x00-\\x1f\\x7f]",
  ].join("|"),
  "g",
);
const UNFINISHED = /\x1b(?:\[[0-?]{0,99}|\][^\x07\x1b\n]{0,200})?$/;

/* One stream of one rank: where its cursor is, and the last rows it can still change. */
class Stream {
  constructor(log, kind) {
    this.log = log;
    this.kind = kind;
    this.forget();
  }

  forget() {
    this.leave();
    this.column = 0;
    this.style = PLAIN;
    this.rest = "";
  }

  /* Write below all that is there: the row that was written to is shown no more. */
  leave() {
    this.rows = [];
    this.at = 0;
  }

  feed(chunk) {
    let text = this.rest + chunk;
    this.rest = UNFINISHED.exec(text)?.[0] ?? "";
    if (this.rest) text = text.slice(0, -this.rest.length);
    for (const [, sgr, count, move, plain, control] of text.matchAll(TOKENS)) {
      if (plain !== undefined) this.write(plain);
      else if (control !== undefined) this.control(control);
      else if (move !== undefined) this.move(move, count);
      else if (sgr !== undefined) this.style = afterSgr(this.style, sgr);
    }
  }

  write(text) {
    for (let at = 0; at < text.length; ) {
      if (this.column >= MAX_COLUMNS) this.control("\n");
      const piece = text.slice(at, at + MAX_COLUMNS - this.column);
      this.row().write(this.column, piece, this.style);
      this.column += piece.length;
      at += piece.length;
    }
  }

  row() {
    if (this.rows[this.at]?.number < this.log.first) this.leave();
    if (this.at === this.rows.length) this.rows.push(this.log.push(new Row(this.kind)));
    const row = this.rows[this.at];
    this.log.changed.add(row);
    return row;
  }

  control(char) {
    if (char === "\n") {
      this.log.finish(this.row());
      this.at += 1;
      this.column = 0;
      const numGone = Math.min(this.rows.length - SCREEN_ROWS, this.at);
      if (numGone > SCREEN_ROWS) {
        this.rows.splice(0, numGone);
        this.at -= numGone;
      }
    } else if (char === "\r") this.column = 0;
    else this.column = Math.max(this.column - 1, 0);
  }

  move(kind, count) {
    const steps = Number(count || 1) || 1;
    const edge = Math.max(SCREEN_COLUMNS, this.column);
    if (kind === "J" || kind === "K") this.erase(kind, Number(count || 0));
    else if (kind === "A") this.at = Math.max(this.at - steps, 0);
    else if (kind === "B") this.at = Math.max(Math.min(this.at + steps, this.rows.length - 1), 0);
    else if (kind === "C") this.column = Math.min(this.column + steps, edge);
    else if (kind === "D") this.column = Math.max(this.column - steps, 0);
    else this.column = Math.min(steps - 1, edge);
  }

  erase(kind, what) {
    const row = this.row();
    if (what === 0) row.cut(this.column);
    else if (kind === "K" && what === 1)
      row.write(0, " ".repeat(Math.min(this.column, row.length)), PLAIN);
    else if (kind === "K") row.cut(0);
  }
}

/* The last lines of one rank, or of all. */
export class Log {
  constructor(onLine = () => {}) {
    this.onLine = onLine;
    this.rows = [];
    this.first = 0; // number of rows[0]
    this.lost = 0;
    this.changed = new Set(); // rows written to since the last drawing
    this.isClearDue = false;
    this.streams = { stdout: new Stream(this, "stdout"), stderr: new Stream(this, "stderr") };
  }

  feed(kind, text) {
    if (kind === "clear") this.clear(text === "wait");
    else if (kind in this.streams) {
      this.clearIfDue();
      this.streams[kind].feed(text);
    } else {
      this.clearIfDue();
      for (const line of text.split("\n")) this.note(line);
    }
  }

  note(line) {
    const row = this.push(new Row("note"));
    row.write(0, line.slice(0, MAX_COLUMNS), PLAIN);
    this.finish(row);
  }

  /* Lines in the middle were lost on the way: what came before them goes too. */
  lose(count) {
    const numShown = this.rows.length;
    this.forget();
    this.lost += numShown + count;
  }

  clear(isLater) {
    this.isClearDue = isLater;
    if (!isLater) this.forget();
  }

  clearIfDue() {
    if (this.isClearDue) this.clear(false);
  }

  forget() {
    this.first += this.rows.length;
    this.rows = [];
    Object.values(this.streams).forEach((stream) => stream.forget());
  }

  push(row) {
    row.number = this.first + this.rows.length;
    this.rows.push(row);
    // In batches, so that the cost of taking rows off the front does not show.
    if (this.rows.length >= MAX_ROWS + 200) this.trim();
    return row;
  }

  trim() {
    const numGone = Math.max(this.rows.length - MAX_ROWS, 0);
    this.rows.splice(0, numGone);
    this.first += numGone;
    this.lost += numGone;
  }

  /* All views have drawn what changed. */
  settle() {
    this.trim();
    this.changed.clear();
  }

  finish(row) {
    if (!row.isFinished) this.onLine(row);
    row.isFinished = true;
  }

  get text() {
    return this.rows.map((row) => row.text).join("\n");
  }
}

// What is known --------------------------------------------------------------------------------

class Store {
  constructor(model) {
    this.model = model;
    this.label = model.get("label");
    this.ranks = model.get("ranks");
    this.page = Math.random().toString(36).slice(2);
    this.views = new Set();
    this.number = 0;
    this.forget();
    model.on("msg:custom", (batch) => this.take(batch));
    for (const wait of HELLO_MS) setTimeout(() => this.greet(), wait);
  }

  greet() {
    if (!this.canStop && !this.isOver) this.model.send({ kind: "hello", page: this.page });
  }

  forget() {
    this.states = new Map(this.ranks.map((rank) => [rank, { state: "running", where: "" }]));
    this.all = new Log();
    this.logs = new Map(this.ranks.map((rank) => [rank, new Log((row) => this.tell(rank, row))]));
    this.notes = [];
    this.warning = null;
    this.failures = "";
    this.canStop = false;
    this.isOver = false;
    this.begin = performance.now();
    this.firstBad = null;
  }

  /* A line of a rank is complete: it joins those of all. */
  tell(rank, row) {
    const copy = new Row(row.kind);
    copy.label = `[rank${rank}] ${row.kind === "stderr" ? "stderr: " : ""}`;
    copy.spans = row.spans.map((span) => [...span]);
    copy.length = row.length;
    this.all.push(copy);
  }

  log(name) {
    return name === "all" ? this.all : this.logs.get(name);
  }

  take(batch) {
    if (batch.kind !== "batch") return;
    if (batch.is_whole) this.forget();
    else if (batch.number !== this.number + 1) this.model.send({ kind: "resend" });
    this.number = batch.number;
    this.begin = performance.now() - 1e3 * batch.seconds;
    this.canStop ||= Boolean(batch.can_stop);
    this.isOver = Boolean(batch.is_over);
    if ("warning" in batch) this.warning = batch.warning;
    if ("failures" in batch) this.failures = batch.failures;
    this.notes.push(...(batch.notes ?? []));
    for (const [rank, lost] of batch.lost ?? []) this.lose(rank, lost);
    for (const [rank, kind, text] of batch.pieces ?? []) this.logs.get(rank)?.feed(kind, text);
    const changed = (batch.states ?? []).map(([rank, state]) => this.setState(rank, state));
    for (const view of this.views) view.update(batch.is_whole ? this.ranks : changed);
    for (const log of [this.all, ...this.logs.values()]) log.settle();
  }

  lose(rank, count) {
    this.logs.get(rank)?.lose(count);
    const gap = new Row("note");
    gap.label = `[rank${rank}] `;
    gap.append(`… ${readable(count)} lines are left out here …`, PLAIN);
    this.all.push(gap);
  }

  setState(rank, state) {
    this.states.set(rank, { ...this.states.get(rank), ...state });
    if (IS_BAD.has(state.state)) this.firstBad ??= rank;
    return rank;
  }
}

const readable = (number) => number.toLocaleString("en-US");
const plural = (count, noun) => `${readable(count)} ${noun}${count === 1 ? "" : "s"}`;

// What is drawn --------------------------------------------------------------------------------

function make(tag, name, parent, attributes = {}) {
  const element = document.createElement(tag);
  element.className = `nbdist-${name}`;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

/* Change only what is different: an equal text must not cost a layout, nor be spoken again. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

/* The tab of one rank. */
class Chip {
  constructor(rank, parent, id) {
    this.rank = rank;
    this.button = make("button", "chip", parent, { type: "button", role: "tab", id });
    const head = make("span", "chip-head", this.button);
    this.sign = make("span", "sign", head, { "aria-hidden": "true" });
    make("span", "rank", head).textContent = rank;
    this.count = make("span", "count", head);
    this.where = make("span", "where", this.button);
    this.track = make("span", "track", this.button);
    this.bar = make("span", "bar", this.track);
  }

  update({ state, where, done, total, text }) {
    const { sign, word } = STATES[state] ?? { sign: "?", word: state };
    const progress = done == null ? "" : total ? `${readable(done)}/${readable(total)}` : readable(done);
    const detail = where || text || word;
    this.button.dataset.state = state;
    setText(this.sign, sign);
    setText(this.count, progress);
    setText(this.where, detail);
    this.track.dataset.shown = String(done != null && Boolean(total));
    if (total) this.bar.style.transform = `scaleX(${Math.min(done / total, 1).toFixed(3)})`;
    const parts = [`rank ${this.rank}: ${word}`, where, progress.replace("/", " of "), text];
    const label = parts.filter(Boolean).join(", ");
    if (this.button.title !== label) {
      this.button.title = label;
      this.button.setAttribute("aria-label", label);
    }
  }
}

/* The log that is selected: draws new rows only, follows the end unless the reader scrolled up. */
class LogPane {
  constructor(parent, id) {
    const frame = make("div", "frame", parent);
    this.box = make("div", "log", frame, {
      id,
      role: "tabpanel",
      tabindex: "0",
      "data-lm-suppress-shortcuts": "true",
    });
    this.lost = make("div", "lost", this.box);
    this.rows = make("div", "rows", this.box);
    this.empty = make("div", "empty", this.box);
    this.newest = make("button", "newest", frame, { type: "button" });
    this.newest.textContent = "↓ newest";
    this.newest.addEventListener("click", () => this.follow());
    this.height = 0;
    this.box.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.show(null);
  }

  onScroll() {
    const { scrollTop, clientHeight, scrollHeight } = this.box;
    this.isFollowing = scrollTop + clientHeight >= scrollHeight - 8;
    setHidden(this.newest, this.isFollowing);
  }

  follow() {
    this.isFollowing = true;
    this.box.scrollTop = this.box.scrollHeight;
    setHidden(this.newest, true);
  }

  show(log) {
    this.log = log;
    this.first = log?.first ?? 0; // number of the first row that is drawn
    this.rows.replaceChildren();
    if (!log) return;
    this.update();
    this.follow();
  }

  update() {
    const { log, rows } = this;
    while (this.first < log.first && rows.firstChild) {
      rows.firstChild.remove();
      this.first += 1;
    }
    this.first = log.first;
    const numDrawn = rows.childElementCount;
    for (const row of log.changed) {
      const at = row.number - log.first;
      if (at >= 0 && at < numDrawn) rows.children[at].replaceWith(drawRow(row));
    }
    rows.append(...log.rows.slice(numDrawn).map(drawRow));
    const { lost } = log;
    setText(this.lost, lost ? `… ${plural(lost, "earlier line")} not shown here …` : "");
    setHidden(this.lost, !lost);
    setHidden(this.empty, log.rows.length > 0);
    // It grows, and never shrinks: what stands below must not jump when another rank is selected.
    this.box.style.minHeight = `${Math.max(this.height, this.box.offsetHeight)}px`;
    this.height = parseFloat(this.box.style.minHeight);
    if (this.isFollowing) this.box.scrollTop = this.box.scrollHeight;
  }
}

function drawRow(row) {
  const element = make("div", "row");
  if (row.kind !== "stdout") element.dataset.kind = row.kind;
  if (row.label) make("span", "label", element).textContent = row.label;
  for (const [style, text] of row.spans) {
    if (style === PLAIN) element.append(text);
    else {
      const span = document.createElement("span");
      span.style.cssText = style.css;
      span.textContent = text;
      element.append(span);
    }
  }
  if (!element.firstChild) element.append("\n");
  return element;
}

let numViews = 0;

class View {
  constructor(store, root) {
    this.store = store;
    this.id = `nbdist-live-${(numViews += 1)}`;
    this.isChosen = false; // by the reader
    this.spokenAt = -Infinity;
    this.pressedAt = -Infinity;
    this.root = make("section", "live", root, { "aria-label": `${store.label} on the ranks` });
    this.buildHead();
    this.buildChips();
    this.failures = make("pre", "failures", this.root, { "aria-label": "What failed" });
    this.notes = make("div", "notes", this.root);
    this.card = make("div", "card", this.root);
    this.detail = make("div", "detail", this.root);
    this.pane = new LogPane(this.root, `${this.id}-log`);
    this.spoken = make("div", "spoken", this.root, { role: "status", "aria-live": "polite" });
    this.select(store.firstBad ?? store.ranks[0]);
    this.update(store.ranks);
    store.views.add(this);
    this.clock = setInterval(() => this.tick(), 1000);
  }

  close() {
    clearInterval(this.clock);
    this.store.views.delete(this);
  }

  buildHead() {
    const head = make("div", "head", this.root);
    make("span", "title", head).textContent = this.store.label;
    this.time = make("span", "time", head);
    this.summary = make("span", "summary", head);
    this.slowest = make("span", "slowest", head);
    this.stop = make("button", "stop", head, { type: "button" });
    this.stop.addEventListener("click", () => this.onStop());
  }

  buildChips() {
    const { ranks } = this.store;
    const tabs = make("div", "tabs", this.root, {
      role: "tablist",
      "aria-label": "Ranks",
      "data-lm-suppress-shortcuts": "true",
    });
    const chips = make("div", "chips", tabs, { role: "presentation" });
    chips.dataset.size = ranks.length > MANY ? "many" : ranks.length > FEW ? "some" : "few";
    this.chips = new Map(ranks.map((rank) => [rank, new Chip(rank, chips, `${this.id}-${rank}`)]));
    this.tabs = new Map(ranks.map((rank) => [rank, this.chips.get(rank).button]));
    if (ranks.length > 1) {
      const all = make("button", "chip", null, { type: "button", role: "tab", id: `${this.id}-all` });
      all.dataset.state = "all";
      all.setAttribute("aria-label", "all ranks");
      make("span", "rank", make("span", "chip-head", all)).textContent = "all";
      tabs.prepend(all);
      this.tabs = new Map([["all", all], ...this.tabs]);
    }
    for (const [name, tab] of this.tabs) {
      tab.setAttribute("aria-controls", `${this.id}-log`);
      tab.addEventListener("click", () => this.choose(name));
    }
    tabs.addEventListener("keydown", (event) => this.onKey(event));
  }

  // What the reader does

  choose(name) {
    this.isChosen = true;
    this.select(name);
  }

  onKey(event) {
    const names = [...this.tabs.keys()];
    const at = names.indexOf(this.selected);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    let next = { Home: 0, End: names.length - 1 }[event.key];
    if (step) next = (at + step + names.length) % names.length;
    if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(names[next]);
    this.tabs.get(this.selected).focus();
  }

  onStop() {
    this.pressedAt = performance.now();
    this.store.model.send({ kind: "stop" });
    this.drawStop();
    setTimeout(() => this.drawStop(), STOP_AGAIN_MS + 50);
  }

  select(name) {
    this.tabs.get(this.selected)?.setAttribute("aria-selected", "false");
    this.selected = name;
    for (const [other, tab] of this.tabs) {
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
    }
    this.pane.box.setAttribute("aria-labelledby", `${this.id}-${name}`);
    this.pane.show(this.store.log(name));
    this.drawDetail();
  }

  // What the kernel says

  update(ranks) {
    const { store } = this;
    for (const rank of ranks) this.chips.get(rank)?.update(store.states.get(rank));
    if (!this.isChosen && store.firstBad !== null && this.selected !== store.firstBad) {
      this.select(store.firstBad);
    } else if (this.pane.log !== store.log(this.selected)) {
      this.pane.show(store.log(this.selected)); // all was sent again
    } else this.pane.update();
    this.drawStop();
    this.drawCards();
    this.drawSummary();
    this.drawDetail();
    this.tick();
  }

  tick() {
    const seconds = Math.max(0, Math.floor((performance.now() - this.store.begin) / 1e3));
    const minutes = Math.floor(seconds / 60);
    const text = minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
    setText(this.time, this.store.isOver ? "over" : text);
    this.speak();
  }

  drawStop() {
    setHidden(this.stop, !this.store.canStop || this.store.isOver);
    const isPressed = this.pressedAt > -Infinity;
    this.stop.disabled = performance.now() - this.pressedAt < STOP_AGAIN_MS;
    setText(this.stop, this.stop.disabled ? "■ Stopping …" : isPressed ? "■ Stop waiting" : "■ Stop");
  }

  drawCards() {
    const { warning, notes, failures, isOver } = this.store;
    const gone = "The cell is over. This page was reloaded while it ran, so its output is not here: ";
    const text = isOver ? `${gone}%dist last shows it again.` : (warning ?? "");
    this.card.dataset.kind = isOver ? "over" : "warning";
    setText(this.card, text);
    setHidden(this.card, !text);
    setText(this.notes, notes.join("\n"));
    setHidden(this.notes, !notes.length);
    setText(this.failures, failures);
    setHidden(this.failures, !failures);
  }

  drawSummary() {
    const states = [...this.store.states.values()].map(({ state }) => state);
    const counts = IN_SUMMARY.map((state) => [state, states.filter((s) => s === state).length]);
    const text = counts.filter(([, count]) => count).map(([state, count]) => `${count} ${state}`);
    setText(this.summary, text.join(" · "));
    setText(this.slowest, this.describeSlowest());
  }

  describeSlowest() {
    const shares = [...this.store.states].filter(([, s]) => s.total).map(([r, s]) => [r, s.done / s.total]);
    const [least, most] = [Math.min, Math.max].map((pick) => pick(...shares.map(([, share]) => share)));
    if (shares.length < 2 || least === most) return "";
    const [rank] = shares.find(([, share]) => share === least);
    return `slowest: rank ${rank}, ${Math.floor(100 * least)} %`;
  }

  drawDetail() {
    const isAll = this.selected === "all";
    const { state, where = "", text = "" } = this.store.states.get(this.selected) ?? {};
    const { sign, word } = STATES[state] ?? {};
    this.detail.dataset.state = state ?? "all";
    const said = [`rank ${this.selected} ${sign} ${word}`, where, text].filter(Boolean).join(" · ");
    setText(this.detail, isAll ? "all ranks, whole lines as they came" : said);
    setText(this.pane.empty, isAll ? "no lines yet" : `rank ${this.selected} has printed nothing yet`);
  }

  /* Say how the ranks are doing, but never so often that nothing else can be heard. */
  speak() {
    const { store } = this;
    const isUrgent = (store.firstBad !== null && !this.hasToldBad) || (store.warning && !this.hasToldWarning);
    const now = performance.now();
    if (!isUrgent && now - this.spokenAt < SPEAK_MS) return;
    this.hasToldBad = store.firstBad !== null;
    this.hasToldWarning = Boolean(store.warning);
    const bad = store.firstBad === null ? "" : this.chips.get(store.firstBad).button.title;
    const first = (store.warning ?? "").split("\n")[0];
    const text = [`${store.label}: ${this.summary.textContent}`, bad, first].filter(Boolean).join(". ");
    if (this.spoken.textContent !== text) {
      this.spoken.textContent = text;
      this.spokenAt = now;
    }
  }
}

export default () => {
  let store; // one for each model, since anywidget calls this once for each
  return {
    initialize({ model }) {
      store = new Store(model);
    },
    render({ el }) {
      const view = new View(store, el);
      return () => view.close();
    },
  };
};
