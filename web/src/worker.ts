// Runs the engine off the page's thread, so that the page draws and answers while a scan is read or segmented.

import init, { Gpu, Live, Model, Scan, Segmenter, Trainer } from '../package/obelisk.js'
import type { Calls, Failure, GpuInfo, ModelInfo, Name, Needs, Result, ScanInfo, Slices, ToPage, ToWorker } from './messages'

const ready = init()
let gpu: Gpu | undefined
let scan: Scan | undefined
let model: Model | undefined
let segmenter: Segmenter | undefined
/** Whether it mirrors. */
let mirrors = false
let live: Live | undefined
/** Stops the segmentation or training that came last, and what the running call hears of that. */
let stop = new AbortController()
let signal = stop.signal

function send(message: ToPage): void {
  postMessage(message)
}

function named(name: string, message: string): Error {
  const error = new Error(message)
  error.name = name
  return error
}

async function openGpu(): Promise<Gpu> {
  if (!gpu) {
    if (!navigator.gpu) {
      throw named('NoWebGpuError', 'This browser has no WebGPU.')
    }
    gpu = await Gpu.open()
  }
  return gpu
}

function forgetSegmenter(): void {
  segmenter?.free()
  segmenter = undefined
  forgetLive()
}

function forgetLive(): void {
  live?.free()
  live = undefined
}

/** After a device failed nothing on it is of use; the next call opens another. */
function forgetGpu(): void {
  forgetSegmenter()
  gpu?.free()
  gpu = undefined
}

function chosen(): { scan: Scan; model: Model } {
  if (!scan || !model) {
    throw named('ScanError', 'Choose a scan and a network first.')
  }
  return { scan, model }
}

const functions: { [N in Name]: (...args: Calls[N]['args']) => Promise<Calls[N]['answer']> } = {
  async gpu(): Promise<GpuInfo> {
    const { name, software } = await openGpu()
    return { name, software }
  },

  async scan(bytes, name): Promise<ScanInfo> {
    const read = Scan.parse(bytes, name)
    forgetLive()
    scan?.free()
    scan = read
    return {
      shape: [...read.shape],
      spacing: [...read.spacing],
      orientation: read.orientation,
      channels: read.channels,
      nonFinite: read.nonFinite,
    }
  },

  async model(bytes, name, files): Promise<ModelInfo> {
    const read = files
      ? Model.fromFiles(
          files.map((file) => file.name),
          files.map((file) => file.bytes),
          name,
        )
      : Model.parse(bytes, name)
    forgetSegmenter()
    model?.free()
    model = read
    return {
      arch: read.arch,
      channels: read.channels,
      parameters: read.parameters,
      labels: read.labels.map(({ value, name }) => ({ value, name })),
      live: read.live,
      mirrorings: read.mirrorings,
    }
  },

  async estimate(mirroring): Promise<Needs> {
    const { scan, model } = chosen()
    const estimate = model.estimate(await openGpu(), scan, mirroring)
    const { tiles, memoryMib, gflop } = estimate
    estimate.free()
    return { tiles, memoryMib, gflop }
  },

  async segment(mirroring): Promise<Result> {
    const { scan, model } = chosen()
    const start = performance.now()
    const device = await openGpu()
    if (!segmenter || mirrors !== mirroring) {
      send({ phase: 'Preparing the network', share: 0 })
      segmenter?.free()
      segmenter = undefined
      segmenter = await Segmenter.create(device, model, mirroring)
      mirrors = mirroring
    }
    send({ phase: 'Reading the scan', share: 0 })
    const progress = (share: number) =>
      send({ phase: share < 1 ? 'Segmenting' : 'Bringing labels to the scan', share })
    const segmentation = await segmenter.segment(scan, progress, signal)
    const labels = segmentation.nifti(true) as Uint8Array<ArrayBuffer>
    const volumes = segmentation.volumes().map(({ value, name, voxels, ml }) => ({ value, name, voxels, ml }))
    segmentation.free()
    return { labels, volumes, seconds: (performance.now() - start) / 1000, peakMib: device.peakMib }
  },

  async live(): Promise<null> {
    const { scan, model } = chosen()
    live ??= await Live.create(await openGpu(), model, scan)
    return null
  },

  async slices(voxel, step): Promise<Slices> {
    if (!live) {
      throw named('ScanError', 'Start the live labels first.')
    }
    const start = performance.now()
    const planes: Int32Array<ArrayBuffer>[] = []
    for (const axis of [0, 1, 2]) {
      planes.push((await live.slice(axis, voxel[axis], step)) as Int32Array<ArrayBuffer>)
    }
    return { planes, ms: (performance.now() - start) / 3 }
  },

  async train(cases, { arch, grid, epochs, steps }): Promise<Uint8Array<ArrayBuffer>> {
    if (!model) {
      throw named('WeightsError', 'Choose a network first.')
    }
    const device = await openGpu()
    send({ phase: 'Reading the cases', share: 0 })
    const trainer = new Trainer(model, grid && Uint32Array.from(grid))
    try {
      cases.forEach(({ name, image, labels }) => trainer.addCase(image, labels, name))
      send({ phase: 'Preparing the network', share: 0 })
      const step = (share: number, loss: number, epoch: number) => send({ step: { loss, epoch, share } })
      const trained = await trainer.train(device, arch, epochs, steps, step, signal)
      const bytes = trained.toBytes() as Uint8Array<ArrayBuffer>
      trained.free()
      return bytes
    } finally {
      trainer.free()
    }
  },
}

async function answer(id: number, call: Name, args: unknown[]): Promise<void> {
  try {
    await ready
    const answer = await (functions[call] as (...args: unknown[]) => Promise<Calls[Name]['answer']>)(...args)
    send({ id, answer })
  } catch (error) {
    const { name, message } = error instanceof Error ? error : named('Error', String(error))
    if (name === 'DeviceError' || name === 'TooLargeError') {
      forgetGpu()
    }
    send({ id, failure: { name, message } satisfies Failure })
  }
}

// A panic ends the engine outside any call: the page must hear of it.
addEventListener('unhandledrejection', ({ reason }) => {
  setTimeout(() => {
    throw reason
  })
})

// One call at a time: the engine's objects can't be borrowed twice.
let last: Promise<void> = Promise.resolve()

addEventListener('message', ({ data }: MessageEvent<ToWorker>) => {
  if ('stop' in data) {
    stop.abort()
  } else {
    if (data.call === 'segment' || data.call === 'train') {
      // From its arrival on, not from its turn.
      stop = new AbortController()
    }
    const own = stop.signal
    last = last.then(() => {
      signal = own
      return answer(data.id, data.call, data.args)
    })
  }
})
