// A headless Chromium with WebGPU on SwiftShader, and the built page on a local server.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium } from 'playwright-core'
import { preview } from 'vite'

const FLAGS = [
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--use-angle=swiftshader',
  '--enable-unsafe-swiftshader',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** Serves dist/ on a free port: its address and how to stop it. */
export async function serve() {
  const server = await preview({ root: join(import.meta.dirname, '..'), preview: { port: 0, host: '127.0.0.1' }, logLevel: 'error' })
  return { url: server.resolvedUrls.local[0], close: () => server.close() }
}

/** A browser context with a profile of its own. */
export async function launch(options = {}) {
  const profile = mkdtempSync(join(tmpdir(), 'obelisk-web-'))
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    chromiumSandbox: process.getuid?.() !== 0,
    args: FLAGS,
    viewport: { width: 1280, height: 800 },
    ...options,
  })
  // Beside other jobs SwiftShader takes its time for a frame, and clicks wait for frames.
  context.setDefaultTimeout(120_000)
  const close = async () => {
    await context.close()
    rmSync(profile, { recursive: true, force: true })
  }
  return { context, close }
}
