// Live labels follow the crosshair, and a small network trains in the tab.

import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { readLabels } from './nifti.js'
import { ROOT, ct, drop, open, picture, saved, segment, untilReady } from './page.js'

let server, browser

before(async () => {
  server = await serve()
  browser = await launch({ serviceWorkers: 'block' })
})

after(async () => {
  await browser?.close()
  await server?.close()
})

/** Waits until the canvas is drawn: on SwiftShader drawing takes the cores that a slice needs. */
async function drawn(page) {
  await page.evaluate(async () => {
    const gl = document.querySelector('#canvas').getContext('webgl2')
    for (let frame = 0; frame < 3; frame++) {
      await new Promise(requestAnimationFrame)
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4))
    }
  })
}

/** Milliseconds a slice of this detail, the least of several looks after the first, which plans and compiles. */
async function sliceTime(page, step, looks) {
  const times = []
  for (let look = 0; look <= looks; look++) {
    await drawn(page)
    await page.evaluate(() => (document.querySelector('#live-time').textContent = ''))
    await page.selectOption('#live-step', String(step))
    await page.waitForFunction(
      () => /ms a slice/.test(document.querySelector('#live-time').textContent) || !document.querySelector('#error').hidden,
      null,
      { timeout: 300_000 },
    )
    assert.ok(await page.isHidden('#error'), await page.textContent('#error'))
    times.push(parseFloat(await page.textContent('#live-time')))
  }
  return Math.min(...times.slice(1))
}

test('live slices of the 144³ CT follow the crosshair', async (t) => {
  const scan = ct(t)
  if (!scan) {
    return
  }
  const page = await open(browser.context, server.url)
  await page.selectOption('#model', { label: 'Seven abdominal structures (CT, live)' })
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('VISCERAL'))
  await drop(page, scan)
  await untilReady(page)
  // The engine's own seconds, without drawing.
  const volume = async () => {
    await drawn(page)
    await segment(page)
    return Number(/Done in ([\d.]+) s/.exec(await page.textContent('#status'))[1])
  }
  await volume() // compiles
  const first = await volume()
  const { values } = readLabels((await saved(page, '#save-labels')).bytes)
  assert.ok(values.some((value) => value > 0))

  await page.check('#live')
  const quarter = await sliceTime(page, 4, 6)
  await page.uncheck('#live')
  // Before and after the slices, as other jobs come and go.
  const seconds = (first + (await volume())) / 2
  await page.check('#live')
  const full = await sliceTime(page, 1, 1)
  const share = (ms) => `1/${((seconds * 1000) / ms).toFixed(1)}`
  t.diagnostic(
    `the volume on its quarter grid ${seconds.toFixed(1)} s; a slice on the quarter grid ${quarter} ms, ${share(quarter)}; ` +
      `at full resolution ${full} ms, ${share(full)}`,
  )
  if (process.env.SCREENSHOTS) {
    await drawn(page)
    await picture(page, 'live')
  }

  // The labels follow the crosshair.
  await page.selectOption('#live-step', '4')
  await drawn(page)
  const canvas = page.locator('#canvas')
  const shown = await canvas.screenshot()
  const box = await canvas.boundingBox()
  await page.evaluate(() => (document.querySelector('#live-time').textContent = ''))
  await page.mouse.click(box.x + box.width * 0.2, box.y + box.height * 0.3)
  await page.waitForFunction(() => /ms a slice/.test(document.querySelector('#live-time').textContent), null, { timeout: 120_000 })
  await drawn(page)
  assert.notDeepEqual(await canvas.screenshot(), shown)
  assert.deepEqual(page.complaints, [])
  await page.close()
})

/** Trains a network for so many epochs, and stops after `steps` of its steps; how many it made, and what the page says. */
async function train(page, arch, epochs, steps = Infinity) {
  await page.selectOption('#train-arch', arch)
  await page.fill('#train-epochs', String(epochs))
  const start = performance.now()
  await page.click('#train')
  if (steps < Infinity) {
    const made = (steps) => (document.querySelector('#curve .mean')?.getAttribute('points') ?? '').split(' ').length >= steps
    await page.waitForFunction(made, steps, { timeout: 300_000 })
    await page.click('#train-stop')
  }
  await page.waitForFunction(
    () => /steps in/.test(document.querySelector('#train-status').textContent) || !document.querySelector('#error').hidden,
    null,
    { timeout: 600_000 },
  )
  assert.ok(await page.isHidden('#error'), await page.textContent('#error'))
  const status = await page.textContent('#train-status')
  const heights = (await page.getAttribute('#curve .mean', 'points')).split(' ').map((point) => Number(point.split(',')[1]))
  return { status, heights, seconds: (performance.now() - start) / 1000 }
}

test('a small network trains in the tab, and its weights are a file for the command line', async (t) => {
  if (process.env.QUICK) {
    t.skip('takes minutes without a GPU; scripts/web.sh test alone runs it')
    return
  }
  const page = await open(browser.context, server.url)
  await page.click('summary')
  const { status, heights, seconds } = await train(page, 'obelisk', 1)
  t.diagnostic(`${status} ${seconds.toFixed(1)} s in all`)
  assert.match(status, /^16 steps in \d+ s; the last loss was [\d.]+\.$/)
  assert.equal(heights.length, 16)
  // Down the page is down in loss.
  assert.ok(heights.at(-1) > heights[0] + 5, `the loss did not fall: ${heights}`)
  if (process.env.SCREENSHOTS) {
    await page.locator('#train-status').scrollIntoViewIfNeeded()
    await picture(page, 'training')
  }
  const { bytes } = await saved(page, '#train-save')
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
  assert.equal(JSON.parse(header.__metadata__.obelisk).arch, 'obelisk')
  assert.match(await page.textContent('#model-info'), /obelisk · /)
  await drop(page, join(ROOT, 'examples/data/imagesTs/hippocampus_041.nii.gz'))
  await untilReady(page)
  await segment(page)

  // A training that is stopped keeps its network, which labels slices.
  const stopped = await train(page, 'obelisk', 40, 3)
  assert.ok(stopped.heights.length >= 3 && stopped.heights.length < 40 * 16, stopped.status)
  await untilReady(page)
  await page.check('#live')
  await sliceTime(page, 4, 1)
  await page.uncheck('#live')
  assert.deepEqual(page.complaints, [])
  await page.close()
})
