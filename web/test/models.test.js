// Models from elsewhere, dropped on the page, give the labels that the command line gives.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { readLabels, zip } from './nifti.js'
import { ROOT, drop, dropBytes, large, message, open, picture, saved, segment, untilReady } from './page.js'

const NNUNET = join(ROOT, 'tests/reference/nnunet/resenc')
const SCAN = join(NNUNET, 'imagesTs/hippocampus_102_0000.nii.gz')
let server, browser, folder

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'obelisk-models-'))
  server = await serve()
  browser = await launch()
})

after(async () => {
  await browser?.close()
  await server?.close()
  rmSync(folder, { recursive: true, force: true })
})

/** The command line's labels. */
function native(model, scan, ...options) {
  const labels = join(folder, 'labels.nii.gz')
  const program = join(ROOT, 'target/release/obelisk')
  const command = ['predict', '--model', model, '--input', scan, '--output', labels, '--force', ...options]
  execFileSync(program, command, { stdio: ['ignore', 'ignore', 'pipe'] })
  return readLabels(readFileSync(labels))
}

/** The page's labels of a scan differ from others by one voxel in 10,000 at most: near ties. */
async function compare(t, page, expected) {
  const ours = readLabels((await saved(page, '#save-labels')).bytes)
  assert.deepEqual(ours.shape, expected.shape)
  const [own, theirs] = [ours, expected].map(({ affine }) => affine.flat())
  assert.ok(own.every((entry, i) => entry === theirs[i]), `${own} is not ${theirs}`)
  assert.ok(expected.values.some((value) => value > 0), 'the native labels are all background')
  const differ = ours.values.filter((value, i) => value !== expected.values[i]).length
  t.diagnostic(`${differ} of ${ours.values.length} voxels differ`)
  assert.ok(differ <= ours.values.length / 10_000, `${differ} voxels differ`)
}

/** The files of a model's folder by their paths in it. */
function filesOf(model) {
  const names = readdirSync(model, { recursive: true, withFileTypes: true })
  const paths = names.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name))
  return Object.fromEntries(paths.map((path) => [path.slice(model.length + 1), readFileSync(path)]))
}

test('an archive of nnU-Net’s has nnU-Net’s labels, mirrored and not', async (t) => {
  const page = await open(browser.context, server.url)
  await dropBytes(page, zip(filesOf(join(NNUNET, 'model'))), 'model.zip')
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('nnU-Net'))
  await drop(page, SCAN)
  await untilReady(page)
  assert.match(await page.textContent('#mirror-box'), /8 passes/)
  const mirrored = await segment(page)
  await compare(t, page, readLabels(readFileSync(join(NNUNET, 'expected_mirrored/hippocampus_102.nii.gz'))))
  await picture(page, 'nnunet')
  await page.uncheck('#mirror')
  await untilReady(page)
  const once = await segment(page)
  await compare(t, page, readLabels(readFileSync(join(NNUNET, 'expected/hippocampus_102.nii.gz'))))
  t.diagnostic(`${mirrored.toFixed(1)} s mirrored with the first compilation, ${once.toFixed(1)} s not`)
  // The other networks have no such choice.
  await page.selectOption('#model', '0')
  await page.waitForSelector('#mirror-box', { state: 'hidden' })
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('a results folder of nnU-Net’s is a model, too', async () => {
  const page = await open(browser.context, server.url)
  await page.setInputFiles('#folder', join(NNUNET, 'model'))
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('nnU-Net'))
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('an archive that is damaged or is none of nnU-Net’s is refused in a line', async () => {
  const page = await open(browser.context, server.url)
  const files = filesOf(join(NNUNET, 'model'))
  const [checkpoint] = Object.keys(files).filter((name) => name.endsWith('.pth'))
  const { [checkpoint]: left, ...rest } = files
  for (const [bytes, part] of [
    [zip(files).subarray(0, 100_000), /truncated or damaged/],
    [zip({ 'readme.txt': Buffer.from('hello') }), /no model of nnU-Net/],
    [zip({ ...rest, [checkpoint]: left.subarray(0, 1000) }), /checkpoint_final\.pth/],
  ]) {
    await dropBytes(page, bytes, 'model.zip')
    const { title, text } = await message(page)
    assert.equal(title, 'These weights can’t be used')
    assert.match(text, part)
  }
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('a network of brainchop’s labels a whole head as the command line does', async (t) => {
  const [scan, network] = [large(t, 'data/brain_scans/t1_crop.nii.gz'), large(t, 'data/brainchop/model5_gw_ae')]
  if (!scan || !network) {
    return
  }
  const page = await open(browser.context, server.url)
  await page.setInputFiles('#folder', network)
  await page.waitForFunction(() => document.querySelector('#model-info').textContent.includes('meshnet'))
  await drop(page, scan)
  await untilReady(page)
  const seconds = await segment(page, 1_200_000)
  t.diagnostic(`${seconds.toFixed(1)} s; ${await page.textContent('#status')}`)
  await picture(page, 'brainchop')
  await compare(t, page, native(network, scan))
  assert.deepEqual(page.complaints, [])
  await page.close()
})
