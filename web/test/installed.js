// Segments a scan with the npm package and with the page as they are installed elsewhere (scripts/release.sh):
// node test/installed.js PACKAGE PAGE WEIGHTS SCAN LABELS.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { basename, extname, join, normalize } from 'node:path'
import { launch } from './browser.js'
import { drop, open, segment, untilReady } from './page.js'

const TYPES = { '.js': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html', '.css': 'text/css', '.svg': 'image/svg+xml' }

/** Serves the files of a folder, as any web server would. */
async function folder(root, index) {
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://here').pathname))
    try {
      const body = path === '/' ? index ?? readFileSync(join(root, 'index.html')) : readFileSync(join(root, path))
      const type = path === '/' ? '.html' : extname(path)
      response.writeHead(200, { 'content-type': TYPES[type] ?? 'application/octet-stream' }).end(body)
    } catch {
      response.writeHead(404).end()
    }
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }
}

const [packaged, built, weights, scan, labels] = process.argv.slice(2)
const { context, close } = await launch()
const packageServer = await folder(packaged, '<!doctype html><title>obelisk-web</title>')
const pageServer = await folder(built)
try {
  const page = await context.newPage()
  await page.goto(packageServer.url)
  const bytes = (path) => [...readFileSync(path)]
  const nifti = await page.evaluate(
    async ([weights, scan, name]) => {
      const { default: init, Gpu, Model, Scan, Segmenter } = await import('/obelisk.js')
      await init()
      const gpu = await Gpu.open()
      const model = Model.parse(new Uint8Array(weights), 'weights.safetensors')
      const segmenter = await Segmenter.create(gpu, model, false)
      const segmentation = await segmenter.segment(Scan.parse(new Uint8Array(scan), name))
      return [...segmentation.nifti(true)]
    },
    [bytes(weights), bytes(scan), basename(scan)],
  )
  writeFileSync(labels, Buffer.from(nifti))

  const app = await open(context, pageServer.url)
  await drop(app, scan)
  await untilReady(app)
  await segment(app)
  assert.deepEqual(app.complaints, [])
} finally {
  packageServer.close()
  pageServer.close()
  await close()
}
