// SPDX-License-Identifier: Apache-2.0
// The sandbox's page: draws messages and views, and sends what people type, press and submit.
"use strict";

// Drawn as coloured signs that every font has; emoji fonts are not everywhere.
const EMOJI = {
  white_check_mark: ["✔", "good"], x: ["✘", "bad"], warning: ["⚠", "warn"], hourglass_flowing_sand: ["⌛", "soft"],
  arrows_counterclockwise: ["↻", "busy"], black_square_for_stop: ["■", "soft"], alarm_clock: ["⌛", "bad"], zap: ["⚡", "warn"],
  lock: ["◈", "warn"], snowflake: ["❄", "busy"], sunny: ["☀", "warn"],
};
const COLOURS = ["#6d3bd1", "#1d7f55", "#b2552b", "#2767b8", "#a3234a"];
const HOME = "home";
const state = { users: {}, channels: {}, messages: {}, homes: {}, me: "U0ADA", channel: "C0OPS", thread: null };
const byId = (id) => document.getElementById(id);

// Everything shown is built from nodes; text is never HTML.
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function unescape(text) {
  return text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
}

function colour(user) {
  return COLOURS[Object.keys(state.users).indexOf(user) % COLOURS.length] || "#777";
}

function avatar(user) {
  const node = make("span", "avatar", (state.users[user]?.name || "?")[0].toUpperCase());
  node.style.background = user === "U0LEPTON" ? "#1d1a21" : colour(user);
  if (user === "U0LEPTON") node.textContent = "λ";
  return node;
}

// Slack's mrkdwn, as much of it as is used: code blocks, code, bold, italics, mentions, emoji.
function mrkdwn(text) {
  const lines = make("div", "body", inline(text));
  lines.style.whiteSpace = "pre-wrap";
  return lines;
}

function inline(text) {
  const fragment = document.createDocumentFragment();
  const pattern = /```\n?([\s\S]*?)\n?```|`([^`\n]+)`|\*([^*\n]+)\*|_([^_\n]+)_(?![a-zA-Z0-9])|<@([A-Z0-9]+)>|:([a-z_]+):|<!(?:date|subteam)\^[^|>]*\|?([^>]*)>|<(https?:[^|>]+)\|([^>]+)>/g;
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    const [whole, block, code, bold, italic, user, emoji, special, url, label] = match;
    const before = text[match.index - 1] || " ";
    if (italic !== undefined && /[a-zA-Z0-9]/.test(before)) continue;
    if (emoji !== undefined && !EMOJI[emoji]) continue;
    fragment.append(unescape(text.slice(end, match.index)));
    end = match.index + whole.length;
    if (block !== undefined) fragment.append(make("pre", "", unescape(block)));
    else if (code !== undefined) fragment.append(make("code", "", unescape(code)));
    else if (bold !== undefined) fragment.append(make("b", "", inline(bold)));
    else if (italic !== undefined) fragment.append(make("i", "", inline(italic)));
    else if (url !== undefined) {
      const link = make("a", "", unescape(label));
      Object.assign(link, { href: unescape(url), target: "_blank", rel: "noreferrer" });
      fragment.append(link);
    } else if (special !== undefined) fragment.append(special || "@group");
    else if (user !== undefined) fragment.append(make("span", "mention", "@" + (state.users[user]?.name || user)));
    else fragment.append(make("span", `sign ${EMOJI[emoji][1]}`, EMOJI[emoji][0]));
  }
  fragment.append(unescape(text.slice(end)));
  return fragment;
}

function drawPicker(block, element, press) {
  const groups = (element.option_groups || []).map((group) => {
    const node = make("optgroup", "", ...group.options.map(drawOption));
    node.label = group.label.text;
    return node;
  });
  const select = make("select", "", drawOption({ text: { text: element.placeholder?.text || "" }, value: "" }), ...groups, ...(element.options || []).map(drawOption));
  select.setAttribute("aria-label", element.placeholder?.text || "Choose");
  select.addEventListener("change", () => press(element.action_id, select.value, block.block_id));
  return select;
}

function drawOption(option) {
  const node = make("option", "", option.text.text);
  node.value = option.value;
  return node;
}

function plainOr(object) {
  return object.type === "plain_text" ? document.createTextNode(object.text) : mrkdwn(object.text);
}

function drawBlock(block, press) {
  if (block.type === "section") {
    const node = make("div", "section", block.text ? plainOr(block.text) : null);
    for (const field of block.fields || []) node.append(plainOr(field));
    return node;
  }
  if (block.type === "header") return make("h3", "", block.text.text);
  if (block.type === "divider") return make("hr");
  if (block.type === "context") return make("div", "context", ...block.elements.map((element) => (element.text === undefined ? "" : plainOr(element))));
  if (block.type === "image") { const image = make("img"); image.src = block.image_url; image.alt = block.alt_text; return image; }
  if (block.type === "actions") {
    return make("div", "actions", ...block.elements.map((element) => {
      if (element.type === "static_select") return drawPicker(block, element, press);
      const button = make("button", element.style || "", element.text?.text || element.placeholder?.text || element.type);
      button.type = "button";
      button.addEventListener("click", () => { button.disabled = true; press(element.action_id, element.value); });
      return button;
    }));
  }
  return make("div", "context", `(${block.type})`);
}

function drawHome(view) {
  const press = (action, value) => send("/people/press", { user: state.me, action_id: action, value });
  return make("div", "home", ...view.blocks.map((block) => drawBlock(block, press)));
}

function drawMessage(message) {
  const user = state.users[message.user] || {};
  const time = new Date(Number(message.ts.split(".")[0]) * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const head = make("div", "", make("span", "who", user.name || message.user), user.is_bot ? make("span", "app", "APP") : null, make("time", "", time));
  const content = make("div", "", head);
  if (message.ephemeral_to) content.append(make("div", "ephemeral", "Only visible to you"));
  if (message.blocks?.length) {
    content.append(make("div", "blocks", ...message.blocks.map((block) => drawBlock(block, (action) => press(message, action)))));
  } else if (message.stream) {
    content.append(drawTasks(message.stream));
  } else if (message.text) {
    content.append(mrkdwn(message.text));
  }
  for (const file of message.files || []) {
    if (file.name.endsWith(".png")) {
      const image = make("img", "picture");
      Object.assign(image, { src: file.url_private, alt: file.alt_txt || file.title });
      content.append(make("div", "", make("b", "", file.title)), image);
      continue;
    }
    const link = make("a", "file", "📄", make("b", "", file.title || file.name), `${file.size} bytes`);
    link.href = file.url_private;
    link.target = "_blank";
    content.append(link);
  }
  const node = make("article", message.thread_ts ? "message reply" : "message", avatar(message.user), content);
  if (!message.ephemeral_to) content.append(messageTools(message));
  node.id = `m-${message.ts}`;
  return node;
}

const TASK_SIGNS = { pending: ["○", "soft"], in_progress: ["◐", "busy"], complete: ["✔", "good"], error: ["✘", "bad"] };

function drawTasks(stream) {
  const rows = stream.tasks.map((task) => make("li", "", make("span", `sign ${TASK_SIGNS[task.status][1]}`, TASK_SIGNS[task.status][0]), task.title, task.details ? make("span", "context", ` ${task.details}`) : null));
  return make("div", "blocks", make("b", "", stream.title), make("ul", "tasks", ...rows));
}

function messageTools(message) {
  const reply = make("button", "", "Reply in thread");
  reply.addEventListener("click", () => { state.thread = message.thread_ts || message.ts; draw(); byId("text").focus(); });
  const here = make("button", "", "Do something here");
  here.addEventListener("click", () => send("/people/shortcut", { user: state.me, callback_id: "lepton_do_here", channel: message.channel, ts: message.ts }));
  return make("div", "tools", reply, here);
}

// A message stands below its thread's first one.
function inThreads(messages) {
  const first = messages.filter((message) => !message.thread_ts || message.thread_ts === message.ts || !messages.some((other) => other.ts === message.thread_ts));
  return first.flatMap((message) => [message, ...messages.filter((other) => other.thread_ts === message.ts && other.ts !== message.ts)]);
}

function draw() {
  const nav = (id, items, current, choose) => byId(id).replaceChildren(...items.map(([key, ...label]) => {
    const button = make("button", "", ...label);
    button.setAttribute("aria-current", key === current);
    button.addEventListener("click", () => { choose(key); draw(); byId("text").focus(); });
    return button;
  }));
  nav("channels", Object.values(state.channels).filter((channel) => !channel.is_im || channel.user === state.me).map((channel) => [channel.id, `# ${channel.name}`]), state.channel, (key) => { state.channel = key; state.thread = null; });
  const home = byId("home-link");
  home.setAttribute("aria-current", state.channel === HOME);
  nav("people", Object.values(state.users).filter((user) => !user.is_bot).map((user) => [user.id, avatar(user.id), user.name]), state.me, (key) => { state.me = key; if (state.channel === HOME) openHome(); });
  if (state.channel === HOME) {
    byId("channel-name").textContent = "Lepton · Home";
    byId("channel-note").textContent = state.users[state.me]?.real_name || "";
    byId("messages").replaceChildren(state.homes[state.me] ? drawHome(state.homes[state.me]) : make("p", "", "Opening…"));
    byId("composer").hidden = true;
    return;
  }
  byId("composer").hidden = false;
  byId("text").placeholder = state.thread ? "@lepton help (in the thread; Esc leaves it)" : "/lepton help";
  const channel = state.channels[state.channel];
  byId("channel-name").textContent = channel ? `# ${channel.name}` : "";
  byId("channel-note").textContent = channel && !channel.is_member ? "Lepton is not in this channel" : state.users[state.me]?.real_name || "";
  const list = byId("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  const shown = (state.messages[state.channel] || []).filter((message) => !message.ephemeral_to || message.ephemeral_to === state.me);
  list.replaceChildren(...inThreads(shown).map(drawMessage));
  if (atEnd) list.scrollTop = list.scrollHeight;
}

async function send(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
}

const press = (message, action) => send("/people/press", { user: state.me, channel: message.channel, ts: message.ts, action_id: action });

function drawInput(block, view) {
  const element = block.element;
  let input;
  let extra = null;
  if (element.type === "static_select") {
    input = make("select", "", ...(block.optional ? [drawOption({ text: { text: "" }, value: "" })] : []), ...element.options.map(drawOption));
    input.value = element.initial_option?.value || "";
  } else if (element.type === "radio_buttons" || element.type === "checkboxes") {
    const chosen = [element.initial_option, ...(element.initial_options || [])].map((option) => option?.value);
    input = make("fieldset", "", ...element.options.map((option) => {
      const box = make("input");
      Object.assign(box, { type: element.type === "checkboxes" ? "checkbox" : "radio", name: block.block_id, value: option.value, checked: chosen.includes(option.value) });
      return make("span", "choice", box, option.text.text);
    }));
  } else if (element.type === "external_select") {
    input = make("input");
    const list = make("datalist");
    list.id = `list-${block.block_id}`;
    input.setAttribute("list", list.id);
    input.placeholder = element.placeholder?.text || "";
    if (element.initial_option) input.value = element.initial_option.value;
    const suggest = async () => {
      const { answer } = await send("/people/suggest", { user: state.me, view_id: view.id, block_id: block.block_id, action_id: element.action_id, value: input.value });
      list.replaceChildren(...(answer || []).map(drawOption));
    };
    input.addEventListener("focus", suggest);
    input.addEventListener("input", suggest);
    extra = list;
  } else if (element.multiline) {
    input = make("textarea");
  } else {
    input = make("input");
    input.type = element.type === "number_input" ? "number" : "text";
  }
  if (element.initial_value) input.value = element.initial_value;
  if (input.tagName !== "FIELDSET") {
    input.name = block.block_id;
    input.required = !block.optional;
  }
  const label = make(input.tagName === "FIELDSET" ? "div" : "label", "field", block.label.text, input, extra, block.hint ? make("span", "hint", block.hint.text) : null, make("span", "error"));
  label.dataset.block = block.block_id;
  return label;
}

// What Slack sends of an input: the chosen option or options, or the value, null where there is none.
function stateOf(form, block) {
  const type = block.element.type;
  if (type === "checkboxes") {
    const boxes = [...form.querySelectorAll(`input[type=checkbox][name="${block.block_id}"]:checked`)];
    return { selected_options: boxes.map((box) => ({ value: box.value })) };
  }
  const value = form.elements[block.block_id].value;
  if (type.endsWith("_select") || type === "radio_buttons") return { selected_option: value ? { value } : null };
  return { value: value || null };
}

function drawModal(view) {
  const dialog = byId("modal");
  const inputs = view.blocks.filter((block) => block.type === "input");
  const close = make("button", "", view.close?.text || "Cancel");
  close.type = "button";
  close.addEventListener("click", () => dialog.close());
  const choose = (action, value, block) => send("/people/choose", { user: state.me, view_id: view.id, block_id: block, action_id: action, value });
  const form = make("form", "", make("h3", "", view.title.text),
    ...view.blocks.map((block) => (block.type === "input" ? drawInput(block, view) : drawBlock(block, choose))),
    make("footer", "", close, view.submit ? make("button", "primary", view.submit.text) : null));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const values = {};
    for (const block of inputs) {
      values[block.block_id] = { [block.element.action_id]: { type: block.element.type, ...stateOf(form, block) } };
    }
    const { answer } = await send("/people/submit", { user: state.me, view_id: view.id, values });
    for (const label of form.querySelectorAll(".field")) {
      label.querySelector(".error").textContent = answer?.errors?.[label.dataset.block] || "";
    }
    if (!answer?.response_action) dialog.close();
  });
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
}

// What happens while the state is being fetched is taken in after it: it may be in it already, or not yet.
let loaded = false;
const waiting = [];

function take(change) {
  if (!loaded) {
    waiting.push(change);
    return;
  }
  if (change.type === "message") {
    const list = state.messages[change.message.channel];
    const index = list.findIndex((message) => message.ts === change.message.ts);
    if (index < 0) list.push(change.message); else list[index] = change.message;
    draw();
  } else if (change.type === "deleted") {
    state.messages[change.channel] = state.messages[change.channel].filter((message) => message.ts !== change.ts);
    draw();
  } else if (change.type === "view" && change.user === state.me) {
    drawModal(change.view);
  } else if (change.type === "home") {
    state.homes[change.user] = change.view;
    draw();
  } else if (change.type === "channel") {
    state.channels[change.channel.id] = change.channel;
    state.messages[change.channel.id] ||= [];
    draw();
  }
}

async function load() {
  loaded = false;
  const fresh = await (await fetch("/people/state")).json();
  Object.assign(state, { users: fresh.users, channels: fresh.channels, messages: fresh.messages, homes: fresh.homes });
  byId("status").classList.toggle("on", fresh.connected);
  byId("status").querySelector("span").textContent = fresh.connected ? "bot connected" : "waiting for the bot";
  loaded = true;
  waiting.splice(0).forEach(take);
  draw();
  if (!fresh.connected) setTimeout(load, 500);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text) return;
  byId("text").value = "";
  send("/people/say", { user: state.me, channel: state.channel, text, ...(state.thread ? { thread_ts: state.thread } : {}) });
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Escape") { state.thread = null; draw(); }
});

function openHome() {
  state.channel = HOME;
  state.thread = null;
  draw();
  send("/people/home", { user: state.me });
}
byId("home-link").addEventListener("click", openHome);
byId("shortcut").addEventListener("click", () => send("/people/shortcut", { user: state.me, callback_id: "lepton_do" }));

const events = new EventSource("/people/events");
events.onopen = load;
events.onmessage = (event) => take(JSON.parse(event.data));
