// What goes wrong gives a readable message, and the page goes on working.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { changeHeader, twoFrames } from './nifti.js'
import { SAMPLE, WEIGHTS, drop, dropBytes, message, open, picture, segment, takeTiny, untilReady } from './page.js'

let server, browser

before(async () => {
  server = await serve()
  // A service worker would answer before the tests can change the worker's script.
  browser = await launch({ serviceWorkers: 'block' })
})

after(async () => {
  await browser?.close()
  await server?.close()
})

/** Opens the page with `script` run before all else in the first `workers` workers of the engine. */
async function openWith(script, workers = Infinity) {
  const page = await browser.context.newPage()
  let started = 0
  await page.route(/assets\/worker-[^/]*\.js$/, async (route) => {
    const response = await route.fetch()
    const body = await response.text()
    await route.fulfill({ response, body: started++ < workers ? `${script};${body}` : body })
  })
  await page.goto(server.url)
  await page.waitForFunction(() => document.querySelector('#model-info').textContent !== '')
  return page
}

test('files that are no scans or weights', async () => {
  let page = await open(browser.context, server.url)
  const expect = async (bytes, name, title, text) => {
    await dropBytes(page, bytes, name)
    const found = await message(page)
    assert.equal(found.title, title)
    assert.match(found.text, text)
  }
  await expect(Buffer.from('Not a scan at all.\n'.repeat(40)), 'notes.nii', 'This scan can’t be used', /notes\.nii: .*NIfTI/)
  if (process.env.SCREENSHOTS) {
    await dropBytes(page, 'Not a scan at all.\n'.repeat(40), 'notes.nii')
    await page.waitForSelector('#error:not([hidden])')
    await picture(page, 'error')
    await message(page)
  }
  const whole = readFileSync(SAMPLE)
  await expect(whole.subarray(0, whole.length / 2), 'half.nii.gz', 'This scan can’t be used', /half\.nii\.gz: .*cut off/)
  await expect(twoFrames(SAMPLE), 'frames.nii.gz', 'This scan can’t be used', /2 channels, the network takes 1/)
  assert.ok(await page.isDisabled('#run'), 'a scan that does not fit can be run')
  const first = (header) => Object.keys(header).find((name) => /weight$/.test(name) && header[name].shape.length === 5)
  let tensor
  const reshaped = changeHeader(WEIGHTS, (header) => {
    tensor = first(header)
    header[tensor].shape.reverse()
  })
  await expect(Buffer.from('no weights'), 'text.safetensors', 'These weights can’t be used', /text\.safetensors: /)

  // A page of its own: the scan of two channels would be what is wrong with any weights.
  assert.deepEqual(page.complaints, [])
  await page.close()
  page = await open(browser.context, server.url)
  await dropBytes(page, reshaped, 'reshaped.safetensors')
  const { title, text } = await message(page)
  assert.equal(title, 'These weights can’t be used')
  assert.ok(text.includes(tensor), `${text} does not name ${tensor}`)

  // And on it goes with what is right.
  await drop(page, SAMPLE)
  await takeTiny(page)
  await untilReady(page)
  await segment(page)
  assert.deepEqual(page.complaints, [])
  await page.close()
})

test('a device that is lost while it works', async () => {
  const page = await openWith(`
    const request = GPUAdapter.prototype.requestDevice
    let lost = false
    GPUAdapter.prototype.requestDevice = async function (...options) {
      const device = await request.apply(this, options)
      const { submit } = device.queue
      device.queue.submit = function (...buffers) {
        const result = submit.apply(this, buffers)
        if (!lost) {
          lost = true
          device.destroy()
        }
        return result
      }
      return device
    }
  `)
  await takeTiny(page)
  await drop(page, SAMPLE)
  await untilReady(page)
  await page.click('#run')
  const { title, text } = await message(page)
  assert.equal(title, 'The graphics adapter failed')
  assert.match(text, /lost.*Run it again/s)
  await segment(page)
  await page.close()
})

test('an adapter without memory', async () => {
  const page = await openWith(`
    const { createBuffer, popErrorScope } = GPUDevice.prototype
    let [refused, refuse] = [false, false]
    GPUDevice.prototype.createBuffer = function (descriptor) {
      if (!refused && descriptor.size > 1 << 20) {
        refused = refuse = true
      }
      return createBuffer.call(this, descriptor)
    }
    GPUDevice.prototype.popErrorScope = async function () {
      const error = await popErrorScope.call(this)
      if (!refuse) {
        return error
      }
      refuse = false
      return new GPUOutOfMemoryError('no memory left')
    }
  `)
  await takeTiny(page)
  await drop(page, SAMPLE)
  await untilReady(page)
  await page.click('#run')
  const { title, text } = await message(page)
  assert.equal(title, 'Too large for this machine')
  assert.match(text, /memory/)
  await segment(page)
  await page.close()
})

test('an engine that breaks down is started again', async () => {
  const page = await openWith(
    `GPUDevice.prototype.createBindGroup = () => {
      throw new TypeError('broken on purpose')
    }`,
    1,
  )
  await takeTiny(page)
  await drop(page, SAMPLE)
  await untilReady(page)
  await page.click('#run')
  const { title, text } = await message(page)
  assert.equal(title, 'The engine stopped and was started again')
  assert.match(text, /broken on purpose/)
  await segment(page)
  await page.close()
})

test('a browser without WebGPU', async () => {
  const page = await openWith(`Object.defineProperty(WorkerNavigator.prototype, 'gpu', { value: undefined })`)
  await drop(page, SAMPLE)
  const { title, text } = await message(page)
  assert.equal(title, 'This browser has no WebGPU')
  assert.match(text, /Chrome/)
  assert.ok(await page.isDisabled('#run'))
  await page.close()
})
