// Keeps all files of the page, so that it works without its server, too. A file that can be had is always fetched anew.
const CACHE = "fqt-train-digits";

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil((async () => {
    const files = await (await fetch("files.json", { cache: "no-cache" })).json();
    await (await caches.open(CACHE)).addAll(["./", ...files]);
  })());
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    try {
      const response = await fetch(event.request);
      if (response.ok) await cache.put(event.request, response.clone());
      return response;
    } catch (error) {
      const kept = await cache.match(event.request);
      if (kept === undefined) throw error;
      return kept;
    }
  })());
});
