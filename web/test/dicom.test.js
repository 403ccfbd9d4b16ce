// A DICOM series, opened on the page as a folder.

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { series, wholeNumbers } from './dicom.js'
import { readLabels, valueAt, worldOf } from './nifti.js'
import { SAMPLE, dropBytes, message, open, saved, segment, takeTiny, untilReady } from './page.js'

let server, browser, folder

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'obelisk-dicom-'))
  server = await serve()
  browser = await launch({ serviceWorkers: 'block' })
})

after(async () => {
  await browser?.close()
  await server?.close()
  rmSync(folder, { recursive: true, force: true })
})

test('its labels lie where the same scan’s in a NIfTI file do', async (t) => {
  const scan = wholeNumbers(readFileSync(SAMPLE))
  series(scan).forEach((slice, k) => writeFileSync(join(folder, `${k}.dcm`), slice))
  const page = await open(browser.context, server.url)
  await takeTiny(page)
  await page.setInputFiles('#folder', folder)
  await page.waitForFunction(() => document.querySelector('#scan-info').textContent.includes('.nii'))
  await untilReady(page)
  const info = await page.textContent('#scan-info')
  assert.match(info, /36 × 51 × 34 voxels · 1 × 1 × 1 mm/)
  await segment(page)
  const converted = readLabels((await saved(page, '#save-labels')).bytes)

  await dropBytes(page, scan, 'scan.nii.gz')
  await page.waitForFunction(() => document.querySelector('#scan-info').textContent.includes('scan.nii.gz'))
  await untilReady(page)
  await segment(page)
  const direct = readLabels((await saved(page, '#save-labels')).bytes)

  const found = converted.values.filter((value, i) => value !== valueAt(direct, worldOf(converted, i))).length
  t.diagnostic(`${info}; ${found} voxels differ`)
  assert.ok(direct.values.filter((value) => value > 0).length > 1000)
  // The scan's mean is summed in another order: a voxel at a tie may go the other way.
  assert.ok(found <= 2, `${found} voxels differ`)
  assert.deepEqual(page.complaints, [])

  writeFileSync(join(folder, 'notes.txt'), 'Not an image.\n')
  await page.setInputFiles('#file', join(folder, 'notes.txt'))
  const { title, text } = await message(page)
  assert.equal(title, 'This scan can’t be used')
  assert.match(text, /notes\.txt: .*DICOM/)
  assert.ok(await page.isEnabled('#run'), 'the scan before is gone')
  await page.close()
})
