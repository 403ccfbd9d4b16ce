// The site itself: quick to start, offline, silent, usable with a keyboard.

import assert from 'node:assert/strict'
import { gzipSync } from 'node:zlib'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { ROOT, drop, SAMPLE, open, segment, takeTiny, untilReady } from './page.js'

let server, browser

before(async () => {
  server = await serve()
  browser = await launch()
})

after(async () => {
  await browser?.close()
  await server?.close()
})

test('the engine is under 2.5 MB gzipped', (t) => {
  const assets = join(ROOT, 'web/dist/assets')
  const wasm = readdirSync(assets).find((name) => /^obelisk_bg.*\.wasm$/.test(name))
  const bytes = gzipSync(readFileSync(join(assets, wasm)), { level: 9 }).length
  t.diagnostic(`${bytes} bytes`)
  assert.ok(bytes < 2.5e6)
})

test('it starts cold, sends nothing anywhere else, and works offline afterwards', async (t) => {
  const asked = []
  browser.context.on('request', (request) => asked.push(request))
  const start = performance.now()
  const page = await open(browser.context, server.url)
  const seconds = (performance.now() - start) / 1000
  t.diagnostic(`usable after ${seconds.toFixed(2)} s`)

  await page.evaluate(() => navigator.serviceWorker.ready)
  const origin = new URL(server.url).origin
  await assert.rejects(page.evaluate(() => fetch('https://example.org/', { mode: 'no-cors' })), /Failed to fetch|CSP|Refused/)
  await page.waitForFunction(async () => {
    const [name] = await caches.keys()
    return name && (await (await caches.open(name)).keys()).length > 5
  })

  await browser.context.setOffline(true)
  await server.close()
  server = undefined
  await page.reload()
  await page.waitForFunction(() => document.querySelector('#model-info').textContent !== '')
  await drop(page, SAMPLE)
  await untilReady(page)
  await segment(page)
  const foreign = asked.filter((r) => /^https?:/.test(r.url()) && !r.url().startsWith(origin)).map((r) => r.url())
  assert.deepEqual(foreign, ['https://example.org/'].filter((url) => foreign.includes(url)))
  assert.deepEqual(asked.filter((r) => r.method() !== 'GET').map((r) => r.url()), [])
  await browser.context.setOffline(false)
  await page.close()
  server = await serve()
})

test('everything can be reached and run with the keyboard alone', async () => {
  const page = await open(browser.context, server.url)
  await takeTiny(page)
  const focused = () => page.evaluate(() => document.activeElement?.id)
  const tabTo = async (id) => {
    for (let i = 0; i < 40 && (await focused()) !== id; i++) {
      await page.keyboard.press('Tab')
    }
    assert.equal(await focused(), id)
  }
  await tabTo('drop-sample')
  await page.keyboard.press('Enter')
  await untilReady(page)
  await tabTo('run')
  await page.keyboard.press('Enter')
  await page.waitForFunction(() => document.querySelector('#status').textContent.startsWith('Done'), null, { timeout: 300_000 })
  assert.equal(await focused(), 'run', 'the focus was lost')
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll('button, input:not([hidden]), select')]
      .filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length))
      .map((e) => e.id),
  )
  assert.deepEqual(nameless, [], 'controls without a name')
  await page.close()
})
