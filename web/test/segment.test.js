// A scan dropped on the page gives the labels that the command line gives.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { differences, readLabels, readTensors } from './nifti.js'
import { ROOT, SAMPLE, WEIGHTS, ct, drop, open, picture, saved, segment, untilReady } from './page.js'

const TIE = 1e-3
let server, browser, folder

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'obelisk-native-'))
  server = await serve()
  browser = await launch()
})

after(async () => {
  await browser?.close()
  await server?.close()
  rmSync(folder, { recursive: true, force: true })
})

/** The command line's labels and logits, and its seconds. */
function native(scan, weights) {
  const program = join(ROOT, 'target/release/obelisk')
  const [labels, logits] = [join(folder, 'labels.nii.gz'), join(folder, 'logits.safetensors')]
  const start = performance.now()
  execFileSync(
    program,
    ['predict', '--model', weights, '--input', scan, '--output', labels, '--logits', logits, '--force'],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  )
  const seconds = (performance.now() - start) / 1000
  return { labels: readLabels(readFileSync(labels)), logits: readTensors(logits).logits, seconds }
}

async function compare(page, scan, weights) {
  const { labels, logits, seconds } = native(scan, weights)
  const { name, bytes } = await saved(page, '#save-labels')
  assert.match(name, /_labels\.nii\.gz$/)
  const ours = readLabels(bytes)
  assert.deepEqual(ours.shape, labels.shape)
  assert.equal(ours.geometry, labels.geometry)
  assert.ok(labels.values.some((value) => value > 0), 'the native labels are all background')
  const { differ, ties, wrong } = differences(ours, labels, logits, TIE)
  assert.equal(wrong.length, 0, `${wrong.length} voxels differ away from ties`)
  return { differ, ties, seconds, labels: ours }
}

test('a hippocampus gets the command line’s labels, and they can be saved', async (t) => {
  const page = await open(browser.context, server.url)
  await picture(page, 'empty')
  await drop(page, SAMPLE)
  await untilReady(page)
  assert.match(await page.textContent('#needs'), /^Needs \d+ MiB .* in one piece\.$/)
  const first = await segment(page)
  const again = await segment(page)
  await page.waitForTimeout(500)
  await picture(page, 'done')
  const { differ, ties, seconds, labels } = await compare(page, SAMPLE, WEIGHTS)
  t.diagnostic(`${differ} voxels differ, ${ties} near ties; ${first.toFixed(1)} s, again ${again.toFixed(1)} s, native with start ${seconds.toFixed(1)} s`)

  const csv = (await saved(page, '#save-csv')).bytes.toString().trim().split('\n')
  assert.deepEqual(csv.map((line) => line.split(',')[1]), ['name', 'Anterior', 'Posterior'])
  for (const line of csv.slice(1)) {
    const [value, , voxels, ml] = line.split(',').map(Number)
    assert.equal(voxels, labels.values.filter((v) => v === value).length)
    assert.equal(ml, voxels / 1000, 'voxels of 1 mm³')
  }
  const { bytes } = await saved(page, '#save-picture')
  assert.equal(bytes.subarray(1, 4).toString(), 'PNG')
  assert.ok(bytes.length > 20_000, 'the picture is empty')

  const before = await page.locator('#canvas').screenshot()
  await page.uncheck('#label-rows input >> nth=0')
  await page.waitForTimeout(500)
  assert.notDeepEqual(await page.locator('#canvas').screenshot(), before, 'a hidden label is still drawn')
  await page.check('#label-rows input >> nth=0')

  await page.setViewportSize({ width: 390, height: 844 })
  await page.waitForTimeout(500)
  await picture(page, 'phone')
  const width = await page.evaluate(() => document.documentElement.scrollWidth)
  assert.equal(width, 390, 'the page is wider than a phone')
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('the 144³ CT gets the command line’s labels within 1 GiB', async (t) => {
  const scan = ct(t)
  if (!scan) {
    return
  }
  const weights = join(ROOT, 'tests/reference/obeliskhybrid_tcia_fold1/weights.safetensors')
  const page = await open(browser.context, server.url)
  await page.selectOption('#model', { label: 'Eight abdominal organs (CT)' })
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('TCIA'))
  await drop(page, scan)
  await untilReady(page)
  const [, estimate] = /Needs (\d+) MiB/.exec(await page.textContent('#needs'))
  assert.ok(Number(estimate) <= 1024, `${estimate} MiB`)
  await page.evaluate(() => {
    window.shares = new Set()
    const watch = () => {
      window.shares.add(document.querySelector('#progress').value)
      requestAnimationFrame(watch)
    }
    watch()
  })
  const running = segment(page, 600_000)
  await page.waitForFunction(() => document.querySelector('#progress').value > 0.3, null, { timeout: 500_000 })
  await picture(page, 'running')
  const seconds = await running
  const shares = await page.evaluate(() => window.shares.size)
  assert.ok(shares >= 10, `the progress bar showed ${shares} positions`)
  const [, peak] = /with (\d+) MiB/.exec(await page.textContent('#status'))
  assert.ok(Number(peak) <= 1024, `${peak} MiB`)
  await page.waitForTimeout(1000)
  await picture(page, 'abdomen')

  // Stopped between two parts, with the labels before still there.
  await page.click('#run')
  await page.waitForFunction(() => document.querySelector('#progress').value > 0, null, { timeout: 120_000 })
  const asked = performance.now()
  await page.click('#stop')
  await page.waitForFunction(() => document.querySelector('#status').textContent === 'Stopped.', null, { timeout: 120_000 })
  const stopping = (performance.now() - asked) / 1000
  const result = await compare(page, scan, weights)
  t.diagnostic(
    `${result.differ} voxels differ, ${result.ties} near ties; ${seconds.toFixed(1)} s with the first compilation and ` +
      `${peak} MiB (estimated ${estimate}), ${shares} positions of the bar, stopped within ${stopping.toFixed(1)} s, native with start ${result.seconds.toFixed(1)} s`,
  )
  assert.deepEqual(page.complaints, [])
  await page.close()
})
