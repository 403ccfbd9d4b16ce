// The page: opens files, shows what a scan will need, runs the engine, shows and saves what it found.

import sampleUrl from '../../examples/data/imagesTs/hippocampus_041.nii.gz?url'
import { sampleCases } from './cases'
import { colour } from './colours'
import { drawCurve } from './curve'
import { convert } from './dicom'
import { Engine, EngineError } from './engine'
import { type Opened, dropped, fetchFile, folderModel, isModel, read, save, stem } from './files'
import type { LabelVolume, ModelInfo, Needs, Result, ScanInfo } from './messages'
import { MODELS } from './models'

function find<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id)
  if (!element) {
    throw new Error(`the page has no #${id}`)
  }
  return element as T
}

const engine = new Engine()
// The viewer is most of the page's code: the controls don't wait for it.
const viewer = import('./viewer').then(({ Viewer }) => {
  const viewer = new Viewer(find<HTMLCanvasElement>('canvas'))
  viewer.onLocation = (text) => {
    find('location').textContent = text
    void look()
  }
  return viewer
})
const modelSelect = find<HTMLSelectElement>('model')
const run = find<HTMLButtonElement>('run')
const stop = find<HTMLButtonElement>('stop')
const progress = find<HTMLProgressElement>('progress')
const mirror = find<HTMLInputElement>('mirror')

let scan: (Opened & { info: ScanInfo }) | undefined
let model: (Opened & { info: ModelInfo }) | undefined
let result: Result | undefined
let busy = false
/** The action that runs, or ran last. */
let current: Promise<void> = Promise.resolve()
let training = false
/** The value of the network picker that is the model. */
let chosenModel = '0'
/** A network that did not come with the page, and its value in the picker. */
let own: Opened | undefined
const OWN = 'own'
/** Whether the chosen network takes the chosen scan on this adapter. */
let fits = false

// What is said

const TITLES: Record<string, string> = {
  ScanError: 'This scan can’t be used',
  WeightsError: 'These weights can’t be used',
  TooLargeError: 'Too large for this machine',
  DeviceError: 'The graphics adapter failed',
  NoWebGpuError: 'This browser has no WebGPU',
  BreakdownError: 'The engine stopped and was started again',
}

const ADVICE: Record<string, string> = {
  DeviceError: 'Run it again to start the adapter anew; close other pages that use it if this repeats.',
  NoWebGpuError:
    'Viewing works, segmenting needs Chrome or Edge 113, Safari 26 or Firefox 141 (or later), over https or from localhost.',
}

function showError(error: unknown): void {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  find('error-title').textContent = TITLES[name] ?? 'That did not work'
  find('error-text').textContent = [message, ADVICE[name]].filter(Boolean).join(' ')
  find('error').hidden = false
  find('error').scrollIntoView({ block: 'nearest' })
}

function hideError(): void {
  find('error').hidden = true
}

/** Tells what goes on, where the user started it. */
function say(text: string): void {
  find(training ? 'train-status' : 'status').textContent = text
}

function fill(element: HTMLElement, main: string, small: string): void {
  const quiet = document.createElement('small')
  quiet.textContent = small
  element.replaceChildren(main, document.createElement('br'), quiet)
}

/** Runs one action at a time, and none that comes meanwhile; its error is shown and the page goes on. */
async function act(action: () => Promise<void>): Promise<void> {
  if (busy) {
    return
  }
  busy = true
  current = perform(action)
  await current
}

/** Runs an action when the one that runs is over: what was dropped must not get lost. */
async function actNext(action: () => Promise<void>): Promise<void> {
  while (busy) {
    await current
  }
  await act(action)
}

async function perform(action: () => Promise<void>): Promise<void> {
  hideError()
  setDisabled()
  try {
    await action()
  } catch (error) {
    say('')
    if (error instanceof EngineError && error.name === 'AbortError') {
      say('Stopped.')
    } else {
      showError(error)
    }
  } finally {
    busy = false
    update()
  }
}

function update(): void {
  setDisabled()
  modelSelect.value = chosenModel
  find('drop').hidden = scan !== undefined
  find('labels').hidden = result === undefined
  find('live-box').hidden = !(fits && model?.info.live)
}

function setDisabled(): void {
  run.disabled = busy || !fits
  find<HTMLButtonElement>('train').disabled = busy || !model
  for (const id of ['live', 'open', 'open-dicom', 'sample', 'open-model', 'model', 'drop-open', 'drop-sample', 'mirror']) {
    find<HTMLButtonElement>(id).disabled = busy
  }
}

// Scans and networks

async function openScan(file: Opened): Promise<void> {
  say('Reading the scan…')
  const info = await engine.call('scan', file.bytes, file.name)
  scan = { ...file, info }
  stopLive()
  result = undefined
  const shape = info.shape.join(' × ')
  const spacing = info.spacing.includes(0)
    ? 'voxel size not declared'
    : `${info.spacing.map((v) => +v.toFixed(2)).join(' × ')} mm`
  const channels = info.channels > 1 ? ` · ${info.channels} channels` : ''
  const replaced = info.nonFinite > 0 ? ` · ${info.nonFinite} voxels were not numbers and were replaced` : ''
  fill(find('scan-info'), file.name, `${shape} voxels · ${spacing} · ${info.orientation}${channels}${replaced}`)
  update()
  await (await viewer).showScan(file.bytes, file.name)
  say('')
  await estimate()
}

async function openModel(file: Opened, about: string, value: string): Promise<void> {
  say('Reading the network…')
  const info = await engine.call('model', file.bytes, file.name, file.files)
  model = { ...file, info }
  find('mirror-box').hidden = info.mirrorings < 2
  find('mirror-text').textContent = `Mirror tiles as nnU-Net does: ${info.mirrorings} passes each`
  if (live.checked) {
    stopLive()
    ;(await viewer).removeLabels()
  }
  chosenModel = value
  const names = info.labels.slice(1).map(({ name }) => name)
  const labels = names.length > 4 ? `${names.length} labels` : names.join(', ')
  fill(find('model-info'), about, `${info.arch} · ${info.parameters.toLocaleString('en')} parameters · ${labels}`)
  say('')
  await estimate()
}

async function estimate(): Promise<void> {
  const needs = find('needs')
  fits = false
  if (!scan || !model) {
    needs.textContent = 'Choose a scan first.'
    return
  }
  needs.textContent = 'Looking what this scan needs…'
  try {
    const { name, software } = await engine.call('gpu')
    const badge = find('adapter')
    badge.hidden = false
    badge.textContent = `${name || 'WebGPU'}${software ? ' (software)' : ''}`
    needs.textContent = describe(await engine.call('estimate', mirror.checked))
    fits = true
  } catch (error) {
    needs.textContent = 'Can’t be segmented as it is.'
    throw error
  }
}

function describe({ tiles, memoryMib, gflop }: Needs): string {
  const pieces = tiles === 1 ? 'one piece' : `${tiles} pieces`
  return `Needs ${Math.ceil(memoryMib)} MiB of graphics memory and ${gflop.toPrecision(3)} billion operations, in ${pieces}.`
}

async function chooseModel(value: string): Promise<void> {
  if (value === OWN && own) {
    await openModel(own, own.name, OWN)
  } else {
    const { url, name, about } = MODELS[Number(value)]
    await openModel(await fetchFile(url, name), about, value)
  }
}

/** Opens what was dropped or chosen: a model, a scan, or a DICOM series. */
async function openFiles(files: File[]): Promise<void> {
  const folder = await folderModel(files)
  const file = files.find(isModel)
  const weights = folder ?? (file && (await read(file)))
  const nifti = files.find(({ name }) => /\.(nii|gz)$/i.test(name))
  if (weights) {
    await openOwnModel(weights)
  }
  if (nifti) {
    await openScan(await read(nifti))
  } else if (!weights && files.length > 0) {
    say('Converting DICOM…')
    await openScan(await convert(files))
  }
}

async function openOwnModel(file: Opened): Promise<void> {
  own = file
  const option = modelSelect.querySelector<HTMLOptionElement>(`option[value="${OWN}"]`) ?? new Option('', OWN)
  option.textContent = file.name
  modelSelect.append(option)
  await chooseModel(OWN)
}

// Segmenting

engine.onProgress = (phase, share) => {
  progress.value = share
  say(share > 0 && share < 1 ? `${phase}… ${Math.round(100 * share)} %` : `${phase}…`)
}

// The new worker knows nothing of what was opened.
engine.onRestart = () => {
  const [oldScan, oldModel] = [scan, model]
  if (oldScan) {
    engine.call('scan', oldScan.bytes, oldScan.name).catch(showError)
  }
  if (oldModel) {
    engine.call('model', oldModel.bytes, oldModel.name, oldModel.files).catch(showError)
  }
}

async function segment(): Promise<void> {
  stopLive()
  progress.removeAttribute('value')
  find('progress-box').hidden = false
  stop.hidden = false
  stop.disabled = false
  run.hidden = true
  stop.focus()
  try {
    result = await engine.call('segment', mirror.checked)
    listLabels(result.volumes)
    await (await viewer).showLabels(result.labels, result.volumes)
    say(`Done in ${result.seconds.toFixed(1)} s with ${Math.ceil(result.peakMib)} MiB of graphics memory.`)
  } finally {
    find('progress-box').hidden = true
    stop.hidden = true
    run.hidden = false
    run.disabled = false
    run.focus()
  }
}

function listLabels(volumes: LabelVolume[]): void {
  const rows = volumes.map(({ value, name, ml, voxels }, index) => {
    const box = document.createElement('input')
    box.type = 'checkbox'
    box.checked = true
    box.value = String(value)
    box.setAttribute('aria-label', `Show ${name}`)
    const swatch = document.createElement('span')
    swatch.className = 'swatch'
    swatch.style.background = `rgb(${colour(index).join(' ')})`
    const shown = document.createElement('label')
    shown.append(box, swatch)
    const row = document.createElement('tr')
    const cell = (content: Node | string) => row.insertCell().append(content)
    cell(shown)
    cell(name)
    cell(ml === undefined ? `${voxels} voxels` : ml.toFixed(ml < 10 ? 2 : 1))
    return row
  })
  find('label-rows').replaceChildren(...rows)
}

function visibleLabels(): Set<number> {
  const boxes = find('label-rows').querySelectorAll<HTMLInputElement>('input:checked')
  return new Set([...boxes].map(({ value }) => Number(value)))
}

function csv(volumes: LabelVolume[]): string {
  const quoted = (text: string) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
  const lines = volumes.map(({ value, name, voxels, ml }) => [value, quoted(name), voxels, ml?.toFixed(4) ?? ''].join(','))
  return ['label,name,voxels,ml', ...lines, ''].join('\n')
}

// Live labels

const live = find<HTMLInputElement>('live')
/** Whether slices are being looked at, and whether the crosshair has moved since they were asked for. */
let [looking, moved] = [false, false]

async function startLive(): Promise<void> {
  if (!live.checked) {
    ;(await viewer).removeLabels()
    find('live-time').textContent = ''
    return
  }
  result = undefined
  try {
    await engine.call('live')
    ;(await viewer).startPlanes(model?.info.labels.slice(1) ?? [])
  } catch (error) {
    live.checked = false
    throw error
  }
}

/** Labels the planes through the crosshair, again if it has moved meanwhile. */
async function look(): Promise<void> {
  moved = true
  if (looking || !live.checked || busy) {
    return
  }
  looking = true
  try {
    while (moved && live.checked) {
      moved = false
      const voxel = (await viewer).voxel
      const { planes, ms } = await engine.call('slices', voxel, Number(find<HTMLSelectElement>('live-step').value))
      if (live.checked) {
        ;(await viewer).drawPlanes(voxel, planes)
        find('live-time').textContent = `${ms.toFixed(ms < 10 ? 1 : 0)} ms a slice`
      }
    }
  } catch (error) {
    live.checked = false
    showError(error)
  } finally {
    looking = false
  }
}

function stopLive(): void {
  live.checked = false
  find('live-time').textContent = ''
}

// Training

/** Networks that train on the sample cases in minutes: names of the command line's `--arch`. */
const TRAINABLE = ['obelisk-hybrid', 'obelisk', 'unet']
/** Steps of an epoch at random locations: the default, 64, is for hours of training. */
const STEPS = 16
let trained: Uint8Array<ArrayBuffer> | undefined
let losses: number[] = []
/** Whether Stop was pressed, maybe before the engine heard of the training. */
let stopping = false

engine.onStep = ({ loss, epoch, share }) => {
  losses.push(loss)
  find('curve').removeAttribute('hidden')
  drawCurve(find('curve') as unknown as SVGElement, losses, share)
  find('train-status').textContent = `Epoch ${epoch} · loss ${loss.toFixed(3)} · ${Math.round(100 * share)} %`
}

async function train(): Promise<void> {
  const arch = find<HTMLSelectElement>('train-arch').value
  const epochs = find<HTMLInputElement>('train-epochs').valueAsNumber || 1
  const trainStop = find<HTMLButtonElement>('train-stop')
  losses = []
  find('curve').replaceChildren()
  stopping = false
  trained = undefined
  find('train-save').hidden = true
  trainStop.hidden = false
  trainStop.disabled = false
  const start = performance.now()
  training = true
  try {
    // The cases are of the first network's kind, whatever is chosen now.
    await chooseModel('0')
    say('Fetching the cases…')
    const cases = await sampleCases()
    if (stopping) {
      say('Stopped.')
      return
    }
    trained = await engine.call('train', cases, { arch, epochs, steps: STEPS })
    const seconds = ((performance.now() - start) / 1000).toFixed(0)
    await openOwnModel({ name: `Trained here (${arch})`, bytes: trained })
    find('train-save').hidden = false
    say(`${losses.length} steps in ${seconds} s; the last loss was ${losses.at(-1)?.toFixed(3)}.`)
  } finally {
    training = false
    trainStop.hidden = true
  }
}

// Wiring

function chosenFiles(id: string): File[] {
  const input = find<HTMLInputElement>(id)
  const files = [...(input.files ?? [])]
  // So that the same file can be chosen again.
  input.value = ''
  return files
}

function onClick(id: string, action: () => void): void {
  find(id).addEventListener('click', action)
}

const openSample = () => act(async () => openScan(await fetchFile(sampleUrl, 'hippocampus_041.nii.gz')))
onClick('sample', openSample)
onClick('drop-sample', openSample)
onClick('open', () => find('file').click())
onClick('drop-open', () => find('file').click())
onClick('open-dicom', () => find('folder').click())
onClick('open-model', () => find('model-file').click())
onClick('run', () => act(segment))
onClick('stop', () => {
  stop.disabled = true
  engine.stop()
})
onClick('error-close', hideError)
mirror.addEventListener('change', () => act(estimate))
live.addEventListener('change', () => act(startLive).then(look))
find('live-step').addEventListener('change', () => void look())
onClick('train', () => act(train))
onClick('train-stop', () => {
  find<HTMLButtonElement>('train-stop').disabled = true
  stopping = true
  engine.stop()
})
onClick('train-save', () => trained && save(trained, 'trained-here.safetensors'))
find<HTMLSelectElement>('train-arch').append(...TRAINABLE.map((name) => new Option(name)))
for (const id of ['file', 'folder', 'model-file']) {
  find(id).addEventListener('change', () => {
    const files = chosenFiles(id)
    act(() => openFiles(files))
  })
}
modelSelect.append(...MODELS.map(({ name }, index) => new Option(name, String(index))))
modelSelect.addEventListener('change', () => act(() => chooseModel(modelSelect.value)))
find('label-rows').addEventListener('change', async () => (await viewer).setVisible(visibleLabels()))
find<HTMLInputElement>('opacity').addEventListener('input', async ({ target }) =>
  (await viewer).setOpacity(Number((target as HTMLInputElement).value)),
)
onClick('save-labels', () => scan && result && save(result.labels, `${stem(scan.name)}_labels.nii.gz`))
onClick('save-csv', () => scan && result && save(csv(result.volumes), `${stem(scan.name)}_volumes.csv`, 'text/csv'))
onClick('save-picture', () =>
  act(async () => scan && save(await (await viewer).picture(), `${stem(scan.name)}.png`, 'image/png')),
)

const view = find('view')
window.addEventListener('dragover', (event) => {
  event.preventDefault()
  view.classList.add('over')
})
window.addEventListener('dragleave', ({ relatedTarget }) => {
  if (!relatedTarget) {
    view.classList.remove('over')
  }
})
window.addEventListener('drop', (event) => {
  event.preventDefault()
  view.classList.remove('over')
  const files = event.dataTransfer && dropped(event.dataTransfer)
  void actNext(async () => openFiles((await files) ?? []))
})

act(() => chooseModel('0'))
if (import.meta.env.PROD && 'serviceWorker' in navigator) {
  navigator.serviceWorker.register('./sw.js').catch((error) => console.warn('No offline use:', error))
}
