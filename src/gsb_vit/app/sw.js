// The served page without a network: all its files, under a name that their content gives.
const PREFIX = `gsb-vit ${self.registration.scope} `; // pages beside this one have caches of their own
const CACHE = PREFIX + "{{version}}";
const FILES = {{files}}; // address → SHA-256

async function fetched(file) {
  const response = await fetch(file, { cache: "reload" });
  const digest = await crypto.subtle.digest("SHA-256", await response.clone().arrayBuffer());
  const found = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== FILES[file]) throw new Error(`${file} is not the one that belongs to this version`);
  return response;
}

// A version is whole or not there: while files are replaced on the server, the one before stays.
async function install() {
  const names = Object.keys(FILES);
  const responses = await Promise.all(names.map(fetched));
  const cache = await caches.open(CACHE);
  await Promise.all(names.map((name, i) => cache.put(name, responses[i])));
  await self.skipWaiting();
}

async function activate() {
  const old = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

async function answer(request) {
  const url = new URL(request.url);
  url.search = "";
  const cache = await caches.open(CACHE);
  const isPage = url.href === new URL("index.html", self.registration.scope).href;
  return (await cache.match(isPage ? "./" : url.href)) ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(self.registration.scope)) event.respondWith(answer(event.request));
});
