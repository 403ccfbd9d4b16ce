// What the page and the worker say to each other.

/** What is known of a scan once it is read. */
export interface ScanInfo {
  shape: number[]
  spacing: number[]
  orientation: string
  channels: number
  nonFinite: number
}

/** What is known of a weights file once it is read. */
export interface ModelInfo {
  arch: string
  channels: string[]
  parameters: number
  labels: { value: number; name: string }[]
  /** Whether it can look at single slices. */
  live: boolean
  /** Passes a tile where it is mirrored as the model allows; 1 where it can't be. */
  mirrorings: number
}

/** What a scan will need. */
export interface Needs {
  tiles: number
  memoryMib: number
  gflop: number
}

/** The adapter that runs the network. */
export interface GpuInfo {
  name: string
  software: boolean
}

/** A label's volume in a scan. */
export interface LabelVolume {
  value: number
  name: string
  voxels: number
  ml?: number
}

export interface Result {
  /** The label map, .nii.gz, in the scan's geometry. */
  labels: Uint8Array<ArrayBuffer>
  volumes: LabelVolume[]
  seconds: number
  peakMib: number
}

/** A scan with its label map, to train on. */
export interface Case {
  name: string
  image: Uint8Array<ArrayBuffer>
  labels: Uint8Array<ArrayBuffer>
}

/** A training's settings: the network's name, its input in voxels (absent: as the chosen network's), epochs, steps of one. */
export interface Training {
  arch: string
  grid?: [number, number, number]
  epochs: number
  /** Where a network trains at random locations; absent for the default. */
  steps?: number
}

/** Label values of the planes of scan voxels across each axis, the lower of a plane's axes fastest. */
export interface Slices {
  planes: Int32Array<ArrayBuffer>[]
  /** Milliseconds a plane. */
  ms: number
}

/** The worker's functions by name, with arguments and answers. */
export interface Calls {
  gpu: { args: []; answer: GpuInfo }
  scan: { args: [bytes: Uint8Array<ArrayBuffer>, name: string]; answer: ScanInfo }
  /** Reads a model: bytes, or the files of a folder. */
  model: {
    args: [bytes: Uint8Array<ArrayBuffer>, name: string, files?: { name: string; bytes: Uint8Array<ArrayBuffer> }[]]
    answer: ModelInfo
  }
  /** `mirroring`: whether tiles are mirrored as the model allows. */
  estimate: { args: [mirroring: boolean]; answer: Needs }
  segment: { args: [mirroring: boolean]; answer: Result }
  /** Takes the scan to the device for `slices`. */
  live: { args: []; answer: null }
  /** Labels of the three planes through a voxel, looked at every `step` voxels. */
  slices: { args: [voxel: number[], step: number]; answer: Slices }
  /** Trains on the cases, with scans and labels as the chosen network has them: the trained network's weights file. */
  train: { args: [cases: Case[], training: Training]; answer: Uint8Array<ArrayBuffer> }
}

export type Name = keyof Calls

/** An error by name and message: errors of the engine lose their class on the way. */
export interface Failure {
  name: string
  message: string
}

export type ToWorker = { [N in Name]: { id: number; call: N; args: Calls[N]['args'] } }[Name] | { stop: true }

export type ToPage =
  | { id: number; answer: Calls[Name]['answer'] }
  | { id: number; failure: Failure }
  | { phase: string; share: number }
  | { step: { loss: number; epoch: number; share: number } }
