// Driving the page as a person would.

import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { tinyWeights } from './nifti.js'

export const ROOT = join(import.meta.dirname, '../..')
export const SAMPLE = join(ROOT, 'examples/data/imagesTs/hippocampus_041.nii.gz')
export const WEIGHTS = join(ROOT, 'examples/weights/hippocampus.safetensors')
/** Where to keep screenshots, if anywhere. */
const PICTURES = process.env.SCREENSHOTS
/** Where test data too large for the repository may lie. */
const SHARED = process.env.OBELISK_SHARED ?? join(ROOT, '../shared')

/** The CT of 144³; see `large`. */
export const ct = (t) => large(t, 'data/ct/ct_144.nii.gz')

/**
 * Test data, or nothing where the test is skipped: with QUICK set, because it takes minutes without a GPU, and where the
 * test data are absent, which CI must not have.
 */
export function large(t, path) {
  if (process.env.QUICK) {
    t.skip('takes minutes without a GPU; scripts/web.sh test alone runs it')
    return undefined
  }
  const scan = join(SHARED, path)
  if (existsSync(scan)) {
    return scan
  }
  assert.ok(!process.env.CI, `${scan} is not there, and CI must not skip what needs it`)
  t.skip(`${scan} is not there (OBELISK_SHARED names the folder of test data)`)
  return undefined
}

/** Opens the page and waits until its first network is read; collects what the browser complains of. */
export async function open(context, url) {
  const page = await context.newPage()
  page.complaints = []
  page.on('console', (message) => message.type() === 'error' && page.complaints.push(message.text()))
  page.on('pageerror', (error) => page.complaints.push(error.message))
  await page.goto(url)
  await page.waitForFunction(() => document.querySelector('#model-info').textContent !== '')
  return page
}

/** Keeps a screenshot, where there is a folder for them. */
export async function picture(page, name) {
  if (PICTURES) {
    mkdirSync(PICTURES, { recursive: true })
    // While SwiftShader computes, it draws no page.
    await page.screenshot({ path: join(PICTURES, `${name}.png`), timeout: 300_000 })
  }
}

/** Drops bytes as a file of that name on the page. */
export async function dropBytes(page, bytes, name) {
  await page.evaluate(
    async ([base64, name]) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))
      const transfer = new DataTransfer()
      transfer.items.add(new File([bytes], name))
      const target = document.querySelector('#view')
      for (const type of ['dragover', 'drop']) {
        target.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }))
      }
    },
    [Buffer.from(bytes).toString('base64'), name],
  )
}

export const drop = (page, path) => dropBytes(page, readFileSync(path), basename(path))

/** Takes a tiny network, where it does not matter which: SwiftShader compiles those of the page for half a minute. */
export async function takeTiny(page) {
  await dropBytes(page, tinyWeights(WEIGHTS), 'tiny.safetensors')
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('meshnet'))
}

/** Waits until the scan can be segmented; an error on the page fails. */
export async function untilReady(page, timeout = 60_000) {
  await page.waitForFunction(
    () => !document.querySelector('#run').disabled || !document.querySelector('#error').hidden,
    null,
    { timeout },
  )
  assert.ok(await page.isHidden('#error'), await page.textContent('#error'))
}

/** Segments and waits for the labels; the seconds that it took. */
export async function segment(page, timeout = 300_000) {
  // What an earlier run said must not count.
  await page.evaluate(() => (document.querySelector('#status').textContent = ''))
  const start = performance.now()
  await page.click('#run')
  await page.waitForFunction(
    () => document.querySelector('#status').textContent.startsWith('Done') || !document.querySelector('#error').hidden,
    null,
    { timeout },
  )
  assert.ok(await page.isHidden('#error'), await page.textContent('#error'))
  return (performance.now() - start) / 1000
}

/** Waits for an error message: its title and text. */
export async function message(page, timeout = 60_000) {
  await page.waitForSelector('#error:not([hidden])', { timeout })
  const [title, text] = [await page.textContent('#error-title'), await page.textContent('#error-text')]
  await page.click('#error-close')
  return { title, text }
}

/** The bytes that a button saves, and the file's name. */
export async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.click(button)])
  return { name: download.suggestedFilename(), bytes: readFileSync(await download.path()) }
}
