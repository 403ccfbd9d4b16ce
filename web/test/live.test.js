// Live labels follow the crosshair at a fraction of a volume's cost, and a small network trains in the tab.

import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { readLabels } from './nifti.js'
import { ROOT, SHARED, drop, open, saved, segment, untilReady } from './page.js'

let server, browser

before(async () => {
  server = await serve()
  browser = await launch({ serviceWorkers: 'block' })
})

after(async () => {
  await browser?.close()
  await server?.close()
})

/** Milliseconds a slice, once labels of this detail are drawn. */
async function sliceTime(page, step) {
  await page.evaluate(() => (document.querySelector('#live-time').textContent = ''))
  await page.selectOption('#live-step', String(step))
  await page.waitForFunction(() => /ms a slice/.test(document.querySelector('#live-time').textContent), null, { timeout: 120_000 })
  return parseFloat(await page.textContent('#live-time'))
}

test('a live slice of the 144³ CT takes at most 1/20 of the volume’s time', async (t) => {
  const scan = join(SHARED, 'data/ct/ct_144.nii.gz')
  if (!existsSync(scan)) {
    t.skip(`${scan} is not there`)
    return
  }
  const page = await open(browser.context, server.url)
  await page.selectOption('#model', { label: 'Seven abdominal structures (CT, live)' })
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('VISCERAL'))
  await drop(page, scan)
  await untilReady(page)
  await segment(page)
  const seconds = await segment(page)
  const labels = readLabels((await saved(page, '#save-labels')).bytes)
  assert.ok(labels.values.some((value) => value > 0))

  await page.check('#live')
  await page.waitForFunction(() => /ms a slice/.test(document.querySelector('#live-time').textContent), null, { timeout: 120_000 })
  await sliceTime(page, 1)
  const full = await sliceTime(page, 1)
  await sliceTime(page, 4)
  const quarter = await sliceTime(page, 4)
  t.diagnostic(
    `a slice on the quarter grid ${quarter} ms, at full resolution ${full} ms; the whole volume ${seconds.toFixed(2)} s: ` +
      `1/${((seconds * 1000) / quarter).toFixed(0)}`,
  )
  assert.ok(quarter <= (seconds * 1000) / 20, `${quarter} ms a slice, ${seconds} s the volume`)
  if (process.env.SCREENSHOTS) {
    await page.screenshot({ path: join(process.env.SCREENSHOTS, 'live.png') })
  }

  // The labels follow the crosshair.
  const canvas = page.locator('#canvas')
  const before = await canvas.screenshot()
  const box = await canvas.boundingBox()
  await page.mouse.click(box.x + box.width * 0.2, box.y + box.height * 0.3)
  await page.waitForTimeout(2000)
  assert.notDeepEqual(await canvas.screenshot(), before)
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('a small network trains in the tab, and its weights are a file for the command line', async (t) => {
  const page = await open(browser.context, server.url)
  await page.click('summary')
  await page.selectOption('#train-arch', 'obelisk')
  await page.fill('#train-epochs', '1')
  const start = performance.now()
  await page.click('#train')
  await page.waitForFunction(() => /steps in/.test(document.querySelector('#train-status').textContent) || !document.querySelector('#error').hidden, null, { timeout: 300_000 })
  assert.ok(await page.isHidden('#error'), await page.textContent('#error'))
  const status = await page.textContent('#train-status')
  const [, steps, last] = /^(\d+) steps in .* was ([\d.]+)\.$/.exec(status)
  t.diagnostic(`${status} ${((performance.now() - start) / 1000).toFixed(1)} s in all`)
  assert.equal(Number(steps), 64)
  const points = (await page.getAttribute('#curve .mean', 'points')).split(' ').map((point) => Number(point.split(',')[1]))
  assert.equal(points.length, 64)
  assert.ok(points.at(-1) > points[0] + 5, `the loss did not fall: it ended at ${last}`)
  if (process.env.SCREENSHOTS) {
    await page.locator('#train-status').scrollIntoViewIfNeeded()
    await page.screenshot({ path: join(process.env.SCREENSHOTS, 'training.png') })
  }

  const { bytes } = await saved(page, '#train-save')
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
  assert.equal(JSON.parse(header.__metadata__.obelisk).arch, 'obelisk')
  assert.match(await page.textContent('#model-info'), /obelisk/)
  await drop(page, join(ROOT, 'examples/data/imagesTs/hippocampus_041.nii.gz'))
  await untilReady(page)
  await segment(page)
  assert.deepEqual(page.complaints, [])
  await page.close()
})
