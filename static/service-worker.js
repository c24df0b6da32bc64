// Serves the ranking page of a pack without a connection. It is registered when somebody takes tasks along, and never
// before; with a connection the server is always asked first. One person's pages are kept at most: those of others go when
// somebody signs in (app.js).
const BASE = self.location.pathname.replace(/\/service-worker\.js$/, "");
const RANK = /^\/projects\/[^/]+\/rank$/;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== self.location.origin) return;
  if (request.mode === "navigate" && RANK.test(pathname.slice(BASE.length))) event.respondWith(fetch(request).catch(() => keptPage(pathname)));
  // An address below /static/ holds a hash: what was kept under it is what the server has.
  else if (pathname.startsWith(`${BASE}/static/`)) event.respondWith(kept(request.url).catch(() => fetch(request)));
});

async function kept(address) {
  const found = await caches.match(address);
  if (!found) throw new TypeError("not kept");
  return found;
}

// The page is told where it comes from: what it shows may be ranked by now.
async function keptPage(address) {
  const found = await kept(address);
  const html = (await found.text()).replace("<html ", "<html data-from-device ");
  return new Response(html, { status: found.status, headers: found.headers });
}
