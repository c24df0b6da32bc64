// Every page: dialogs, colours, confirmations, live fragments, sign-in links. All pages work without it, only less comfortably.
"use strict";
(() => {
  const on = (type, selector, act) => document.addEventListener(type, (event) => {
    const found = event.target.closest?.(selector);
    if (found) act(event, found);
  });

  // A link to a dialog opens it in place.
  on("click", "a[data-dialog]", (event, link) => {
    event.preventDefault();
    document.getElementById(link.dataset.dialog).showModal();
  });
  on("click", "a[data-close]", (event, link) => {
    const dialog = link.closest("dialog");
    if (!dialog.open) return;
    event.preventDefault();
    dialog.close();
  });
  on("click", "dialog", (event, dialog) => { if (event.target === dialog) dialog.close(); });

  // A menu closes when one looks elsewhere.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // What the browser refuses to send is shown, wherever it is folded away.
  document.addEventListener("invalid", (event) => { for (let fold = event.target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true; }, true);

  // Colours change at once, without a new page.
  on("submit", "form[data-theme-form]", (event, form) => {
    event.preventDefault();
    const theme = event.submitter.value;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    for (const button of form.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === event.submitter));
    document.cookie = `rl_theme=${theme}; path=/; max-age=31536000; samesite=lax`;
  });

  // What can't be undone is asked twice; what was sent once is not sent again by a double click.
  on("submit", "form[data-leave]", async (event, form) => {
    event.preventDefault();
    const { leave } = await import("./rank/leaving.js");
    if (await leave(form.dataset)) form.submit();
  });

  // A session may end by itself: the pages of a pack that somebody else took along go when another person is signed in.
  const person = document.querySelector("form[data-leave]")?.dataset.leave;
  if (person && "caches" in window) caches.keys().then(async (names) => {
    if (!names.some((name) => name !== `rankloop-pack-${person}`)) return;
    const { forgetOthers } = await import("./rank/leaving.js");
    await forgetOthers(person);
  }).catch(() => { /* storage is forbidden: nothing was kept */ });
  on("submit", "form[data-confirm]", (event, form) => { if (!confirm(form.dataset.confirm)) event.preventDefault(); });
  on("submit", "form[method=post]:not(#rank, [data-skip], [data-theme-form])", (event, form) => {
    if (event.defaultPrevented) return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent));

  // A filter is applied when it is chosen.
  on("change", "form[data-filter]", (event, form) => form.requestSubmit());

  // A fragment that asks for itself again while it lives, on an address of its own or in its whole page. Where anything in
  // it has changed it is replaced whole, and says itself whether to go on; what a reader scrolled, opened or focused in it
  // stays so.
  const refresh = async () => {
    const fragment = document.querySelector("[data-refresh-url]");
    if (!fragment) return;
    const wait = Number(fragment.dataset.refreshSeconds || 2) * 1000;
    if (!document.hidden) await replace(fragment);
    setTimeout(refresh, wait);
  };
  const replace = async (fragment) => {
    try {
      const answer = await fetch(fragment.dataset.refreshUrl, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      const html = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = html.getElementById(fragment.id);
      if (!fresh || fresh.outerHTML === shown || isInUse(fragment)) return;
      shown = fresh.outerHTML;
      const focused = fragment.contains(document.activeElement) ? findAgain(fragment, document.activeElement, fresh) : null;
      const scrolled = [...fragment.querySelectorAll(SCROLLS)].map((box) => [box.scrollLeft, box.scrollTop]);
      const open = [...fragment.querySelectorAll("details")].map((details) => details.open);
      fragment.replaceWith(fresh);
      fresh.querySelectorAll("details").forEach((details, index) => { details.open = open[index] ?? details.open; });
      makeScrollable();
      fresh.querySelectorAll(SCROLLS).forEach((box, index) => { if (scrolled[index]) box.scrollTo(...scrolled[index]); });
      focused?.focus({ preventScroll: true });
    } catch { /* the connection is away: the next try is in a moment */ }
  };
  // Somebody writes in it, or marks a text to copy it.
  const isInUse = (fragment) => {
    const mark = getSelection();
    return fragment.querySelector(":is(input, select, textarea, button):focus") !== null
      || !mark.isCollapsed && fragment.contains(mark.anchorNode);
  };
  // What was focused, in the fresh fragment: the link to the same page, or the box in the same place.
  const findAgain = (fragment, element, fresh) => {
    const [kind, isSame] = element.matches("a[href]")
      ? ["a[href]", (other) => other.getAttribute("href") === element.getAttribute("href")]
      : [SCROLLS, (other, index) => fragment.querySelectorAll(SCROLLS)[index] === element];
    return [...fresh.querySelectorAll(kind)].find(isSame);
  };
  const SCROLLS = "pre, .scroll, .lineage, .log, .formula.display";
  let shown = document.querySelector("[data-refresh-url]")?.outerHTML;
  setTimeout(refresh, 2000);

  const later = document.querySelector("[data-reload-after]");
  if (later) setInterval(() => { if (!document.hidden) location.reload(); }, later.dataset.reloadAfter * 1000);

  // A one-time link carries its secret behind the #, where no log sees it: it goes into the form, and out of the address.
  const secret = document.querySelector("input[data-from-fragment]");
  const takeSecret = () => {
    if (!secret || location.hash.length < 2) return;
    secret.value = decodeURIComponent(location.hash.slice(1));
    secret.closest(".field").hidden = true;
    history.replaceState(null, "", location.pathname + location.search);
    (secret.form.querySelector("input:not([type=hidden], [data-from-fragment])") ?? secret.form.querySelector("button")).focus();
  };
  takeSecret();
  // A fresh link that is opened in the same tab changes nothing but what stands behind the #.
  window.addEventListener("hashchange", takeSecret);

  // What scrolls sideways can be scrolled by keyboard too.
  const makeScrollable = () => {
    for (const box of document.querySelectorAll(SCROLLS)) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  makeScrollable();
  window.addEventListener("resize", makeScrollable);
  document.querySelector(".tabs [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
  const focusWanted = () => document.querySelector("[data-focus]")?.focus();
  focusWanted();
  // The place that the address names takes the focus away when the page has loaded.
  if (location.hash) window.addEventListener("load", () => requestAnimationFrame(focusWanted));
})();
