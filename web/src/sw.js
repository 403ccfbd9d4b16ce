// Keeps every file of the page, so that it works offline. The build fills in the version and the list of files.

const NAME = 'obelisk-VERSION'
const FILES = []

addEventListener('install', (event) => {
  event.waitUntil(
    caches
      .open(NAME)
      .then((cache) => cache.addAll(FILES))
      .then(() => skipWaiting()),
  )
})

addEventListener('activate', (event) => {
  const outdated = (name) => name.startsWith('obelisk-') && name !== NAME
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter(outdated).map((name) => caches.delete(name))))
      .then(() => clients.claim()),
  )
})

addEventListener('fetch', (event) => {
  // Some servers say `Vary: Origin`, and scripts ask with an origin where the list above asked without.
  const kept = caches.match(event.request, { ignoreSearch: true, ignoreVary: true })
  event.respondWith(kept.then((found) => found ?? fetch(event.request)))
})
