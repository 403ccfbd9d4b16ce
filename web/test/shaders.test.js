// Chromium compiles every kernel that the graphs of tests/suite/shaders.rs launch: browsers refuse more than naga does.

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { launch, serve } from './browser.js'
import { ROOT } from './page.js'

let server, browser

before(async () => {
  server = await serve()
  browser = await launch({ serviceWorkers: 'block' })
})

after(async () => {
  await browser?.close()
  await server?.close()
})

/**
 * Compiles modules in the page: the messages of each that fails, and which the adapter lacks features for. A pipeline is
 * made of the first module of each kernel: on SwiftShader a pipeline takes a second and more.
 */
async function compile(modules) {
  const adapter = await navigator.gpu.requestAdapter()
  const requiredFeatures = ['subgroups', 'shader-f16'].filter((feature) => adapter.features.has(feature))
  const device = await adapter.requestDevice({ requiredFeatures })
  const found = { features: requiredFeatures, failures: [], left: [], compiled: 0, pipelines: 0 }
  const kernels = new Set()
  for (const { shader, entry, constants, subgroups, wgsl } of modules) {
    const name = `${shader}:${entry} ${constants}`
    const f16 = /^enable f16;/m.test(wgsl)
    if ((subgroups && !requiredFeatures.includes('subgroups')) || (f16 && !requiredFeatures.includes('shader-f16'))) {
      found.left.push(name)
      continue
    }
    device.pushErrorScope('validation')
    // As src/gpu/device.rs has it.
    const directives = 'enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n'
    const module = device.createShaderModule({ code: (subgroups ? directives : '') + wgsl })
    const { messages } = await module.getCompilationInfo()
    const errors = messages.filter(({ type }) => type === 'error').map(({ lineNum, message }) => `${lineNum}: ${message}`)
    const kernel = `${shader}:${entry} ${subgroups}`
    if (!kernels.has(kernel)) {
      kernels.add(kernel)
      device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: entry } })
      found.pipelines++
    }
    const error = await device.popErrorScope()
    if (error && errors.length === 0) {
      errors.push(error.message)
    }
    if (errors.length > 0) {
      found.failures.push(`${name}: ${errors.join('; ')}`)
    }
    found.compiled++
  }
  return found
}

test('every shader compiles in the browser', async (t) => {
  const modules = JSON.parse(readFileSync(process.env.OBELISK_SHADERS_JSON))
  const page = await browser.context.newPage()
  await page.goto(server.url)
  const { features, failures, left, compiled, pipelines } = await page.evaluate(compile, modules)
  t.diagnostic(`${compiled} modules and ${pipelines} pipelines compiled with ${features}; left out for want of features: ${left.join(', ') || 'none'}`)
  assert.deepEqual(failures, [])
  assert.equal(compiled + left.length, modules.length)
  const files = readdirSync(join(ROOT, 'shaders')).filter((name) => name.endsWith('.wgsl')).map((name) => name.slice(0, -5))
  assert.deepEqual([...new Set(modules.map(({ shader }) => shader))].sort(), files.sort())
  await page.close()
})
