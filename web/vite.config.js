import { createHash } from 'node:crypto'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { defineConfig } from 'vite'

/** Writes dist/sw.js with the list of all files, and a version that changes with any of them. */
function serviceWorker() {
  return {
    name: 'service-worker',
    apply: 'build',
    writeBundle() {
      const dist = join(import.meta.dirname, 'dist')
      const files = readdirSync(dist, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name !== 'sw.js')
        .map((entry) => relative(dist, join(entry.parentPath, entry.name)).replaceAll('\\', '/'))
        .sort()
      const hash = createHash('sha256')
      files.forEach((file) => hash.update(file).update(readFileSync(join(dist, file))))
      const urls = ['./', ...files.map((file) => `./${file}`)]
      const source = readFileSync(join(import.meta.dirname, 'src/sw.js'), 'utf8')
        .replace('VERSION', hash.digest('hex').slice(0, 16))
        .replace('FILES = []', `FILES = ${JSON.stringify(urls)}`)
      writeFileSync(join(dist, 'sw.js'), source)
    },
  }
}

export default defineConfig({
  // Relative, so that the folder can be served from anywhere.
  base: './',
  worker: { format: 'es' },
  assetsInclude: ['**/*.safetensors', '**/*.nii.gz'],
  // The samples and weights lie outside this folder.
  server: { fs: { allow: ['..'] } },
  build: { assetsInlineLimit: 0, chunkSizeWarningLimit: 4000, modulePreload: { polyfill: false } },
  plugins: [serviceWorker()],
})
