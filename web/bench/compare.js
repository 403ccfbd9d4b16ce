// The comparison of run.sh: each contender runs twice, and the second time counts.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { availableParallelism, cpus, loadavg } from 'node:os'
import { extname, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { launch, serve } from '../test/browser.js'
import { readLabels } from '../test/nifti.js'
import { ROOT, drop, open, saved, segment, untilReady } from '../test/page.js'

const [scan, work] = process.argv.slice(2)
const HYBRID = join(ROOT, 'tests/reference/obeliskhybrid_tcia_fold1/weights.safetensors')
const UNET = join(work, 'unet.safetensors')
const rows = []

const histogram = (values) => values.reduce((counts, value) => (counts[value]++, counts), Array(9).fill(0))

/** This page: seconds from scan to labels, MiB, and how often each label is. */
async function ours(browser, url, weights) {
  const page = await open(browser.context, url)
  await drop(page, weights)
  await page.waitForFunction(() => document.querySelector('#model').value === 'own')
  await drop(page, scan)
  await untilReady(page)
  const seconds = []
  for (let run = 0; run < 2; run++) {
    await segment(page, 1_200_000)
    seconds.push(Number(/Done in ([\d.]+) s/.exec(await page.textContent('#status'))[1]))
  }
  const [, mib] = /with (\d+) MiB/.exec(await page.textContent('#status'))
  const counts = histogram(readLabels((await saved(page, '#save-labels')).bytes).values)
  await page.close()
  return { first: seconds[0], again: seconds[1], mib, counts }
}

/** The program, from its start to its end. */
function native(weights) {
  const labels = join(work, 'labels.nii.gz')
  const seconds = [0, 1].map(() => {
    const start = performance.now()
    const options = ['predict', '--model', weights, '--input', scan, '--output', labels, '--force']
    execFileSync(join(ROOT, 'target/release/obelisk'), options, { stdio: 'ignore' })
    return (performance.now() - start) / 1000
  })
  return { first: seconds[0], again: seconds[1], counts: histogram(readLabels(readFileSync(labels)).values) }
}

/** The scan as the authors' U-Net takes it, Hounsfield units with W fastest. */
function image() {
  const file = gunzipSync(readFileSync(scan))
  const [d, h, w] = [1, 2, 3].map((i) => file.readInt16LE(40 + 2 * i))
  if (file.readInt16LE(70) !== 4 || d !== 144 || h !== 144 || w !== 144) {
    throw new Error(`${scan} is not a 144³ scan of 16-bit numbers`)
  }
  const start = file.readFloatLE(108)
  return Float32Array.from({ length: d * h * w }, (_, i) => {
    const voxel = Math.floor(i / (h * w)) + d * ((Math.floor(i / w) % h) + h * (i % w))
    return file.readInt16LE(start + 2 * voxel)
  })
}

/** Runs in the page. */
async function runOnnx(threads) {
  const ort = await import('/ort.wasm.min.mjs')
  ort.env.wasm.numThreads = threads
  const session = await ort.InferenceSession.create('/unet.onnx', { executionProviders: ['wasm'] })
  const data = new Float32Array(await (await fetch('/image.f32')).arrayBuffer())
  const seconds = []
  let logits
  for (let run = 0; run < 2; run++) {
    const start = performance.now()
    const answer = await session.run({ image: new ort.Tensor('float32', data, [1, 1, 144, 144, 144]) })
    logits = answer.logits.data
    seconds.push((performance.now() - start) / 1000)
  }
  const counts = Array(9).fill(0)
  for (let i = 0; i < data.length; i++) {
    let best = 0
    for (let c = 1; c < 9; c++) {
      best = logits[c * data.length + i] > logits[best * data.length + i] ? c : best
    }
    counts[best]++
  }
  return { first: seconds[0], again: seconds[1], counts, isolated: crossOriginIsolated }
}

/** onnxruntime-web, with threads: the page must be isolated from other origins. */
async function onnx(browser) {
  const pixels = Buffer.from(image().buffer)
  const dist = join(work, 'node_modules/onnxruntime-web/dist')
  const types = { '.mjs': 'text/javascript', '.wasm': 'application/wasm' }
  const files = { '/': '<!doctype html><title>onnxruntime-web</title>', '/image.f32': pixels }
  const server = createServer(({ url }, response) => {
    const type = types[extname(url)] ?? (url === '/' ? 'text/html' : 'application/octet-stream')
    const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' }
    try {
      const body = files[url] ?? readFileSync(url === '/unet.onnx' ? join(work, 'unet.onnx') : join(dist, url))
      response.writeHead(200, { 'Content-Type': type, ...headers }).end(body)
    } catch {
      response.writeHead(404, headers).end()
    }
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const page = await browser.context.newPage()
  await page.goto(`http://127.0.0.1:${server.address().port}/`)
  const result = await page.evaluate(runOnnx, availableParallelism())
  await page.close()
  server.close()
  return result
}

function row(name, { first, again, mib, counts }, like) {
  const differ = like && counts.reduce((sum, n, i) => sum + Math.abs(n - like.counts[i]), 0)
  rows.push([name, first.toFixed(1), again.toFixed(1), mib ?? '', differ ?? ''])
  console.log(rows.at(-1).join(' | '))
}

const server = await serve()
const browser = await launch({ serviceWorkers: 'block' })
try {
  const hybrid = native(HYBRID)
  row('hybrid, program on software Vulkan', hybrid)
  row('hybrid, this page on SwiftShader', await ours(browser, server.url, HYBRID), hybrid)
  const unet = native(UNET)
  row('U-Net, program on software Vulkan', unet)
  row('U-Net, this page on SwiftShader', await ours(browser, server.url, UNET), unet)
  row('U-Net, onnxruntime-web (WebAssembly)', await onnx(browser), unet)
} finally {
  await browser.close()
  await server.close()
}
console.log(`\n${cpus()[0].model}, ${availableParallelism()} cores; Chromium ${browser.context.browser()?.version() ?? ''}`)
console.log(`load averages at the end: ${loadavg().map((load) => load.toFixed(1)).join(', ')}\n`)
console.log('| | first run, s | second run, s | MiB of graphics memory | voxels by which label counts differ from the program’s |')
console.log('|---|---:|---:|---:|---:|')
rows.forEach((cells) => console.log(`| ${cells.join(' | ')} |`))
