// Another task takes the place of the one on the page: what is marked `data-part`, and what the form says of its task, comes
// from the server (templates/rankings/ahead.html); the rest stays, and so do the words that the scripts say.
import { adopt, form } from "./page.js";

const listeners = [];
export const onShow = (listener) => listeners.push(listener);

// A page of another release, or with another number of answers, is loaded as any page is.
export function canShow(page) {
  const other = page.getElementById("rank");
  const shape = (document) => [document.querySelector("script[type=module]")?.getAttribute("src"), document.documentElement.lang, parts(document).map(({ dataset }) => dataset.part).join(), document.getElementById("rank").dataset.k].join();
  return !!other && shape(page) === shape(document);
}

const parts = (document) => [...document.querySelectorAll("[data-part]")];

export function show(page) {
  const other = page.getElementById("rank");
  for (const { name } of [...form.attributes]) if (!other.hasAttribute(name) && name !== "data-words") form.removeAttribute(name);
  for (const { name, value } of other.attributes) form.setAttribute(name, value);
  const fresh = parts(page);
  parts(document).forEach((part, index) => part.replaceWith(fresh[index]));
  form.querySelector("main").inert = false;
  document.title = page.title;
  history.replaceState(null, "", form.dataset.nextUrl);
  window.scrollTo(0, 0);
  adopt(form);
  listeners.forEach((listener) => listener());
}
