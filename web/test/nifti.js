// What the tests need of files: label maps, logits, changed copies of scans and weights.

import { readFileSync } from 'node:fs'
import { crc32, gunzipSync, gzipSync } from 'node:zlib'

/** A NIfTI-1 label map: shape, affine rows, values with x fastest, and the header's geometry. */
export function readLabels(bytes) {
  const file = bytes[0] === 0x1f ? gunzipSync(bytes) : Buffer.from(bytes)
  const shape = [1, 2, 3].map((i) => file.readInt16LE(40 + 2 * i))
  const type = file.readInt16LE(70)
  const data = file.subarray(file.readFloatLE(108))
  const read = { 2: (i) => data[i], 4: (i) => data.readInt16LE(2 * i), 256: (i) => data.readInt8(i) }[type]
  const values = Int32Array.from({ length: shape[0] * shape[1] * shape[2] }, (_, i) => read(i))
  const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => file.readFloatLE(280 + 16 * row + 4 * column)))
  return { shape, values, affine, geometry: file.subarray(252, 328).toString('hex') }
}

/** Where the i-th voxel of a label map lies, in mm. */
export function worldOf({ shape, affine }, i) {
  const voxel = [i % shape[0], Math.floor(i / shape[0]) % shape[1], Math.floor(i / shape[0] / shape[1]), 1]
  return affine.map((row) => row.reduce((sum, entry, column) => sum + entry * voxel[column], 0))
}

/** A label map's value at a place in mm, where its axes are the world's; undefined outside. */
export function valueAt({ shape, affine, values }, world) {
  const voxel = world.map((mm, axis) => Math.round((mm - affine[axis][3]) / affine[axis][axis]))
  const inside = voxel.every((v, axis) => v >= 0 && v < shape[axis])
  return inside ? values[voxel[0] + shape[0] * (voxel[1] + shape[1] * voxel[2])] : undefined
}

/** Tensors of a safetensors file by name: shape and f32 values. */
export function readTensors(path) {
  const file = readFileSync(path)
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.subarray(8, 8 + length).toString())
  const tensors = {}
  for (const [name, { shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name !== '__metadata__') {
      const bytes = file.subarray(8 + length + offsets[0], 8 + length + offsets[1])
      tensors[name] = { shape, data: new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)) }
    }
  }
  return tensors
}

/** A safetensors file with its header changed. */
export function changeHeader(path, change) {
  const file = readFileSync(path)
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.subarray(8, 8 + length).toString())
  change(header)
  const text = Buffer.from(JSON.stringify(header))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([size, text, file.subarray(8 + length)])
}

/**
 * Weights of a network that compiles at once, for the scans of those in `path`: the mean of 27 voxels, and from its ELU one of
 * three labels.
 */
export function tinyWeights(path) {
  const file = readFileSync(path)
  const header = JSON.parse(file.subarray(8, 8 + Number(file.readBigUInt64LE(0))).toString())
  const { format, preprocessing } = JSON.parse(header.__metadata__.obelisk)
  const channels = 4
  const tensors = {
    'layers.0.weight': [[channels, 1, 3, 3, 3], (i) => (i < 27 ? 1 / 27 : 0)],
    'layers.0.bias': [[channels], () => 0],
    'layers.1.weight': [[3, channels, 1, 1, 1], (i) => (i % channels === 0 ? [0, 2, 4][i / channels] : 0)],
    'layers.1.bias': [[3], (i) => [0, 0, -2][i]],
  }
  const record = { format, arch: `meshnet:elu:${channels}x1`, preprocessing }
  const entries = { __metadata__: { obelisk: JSON.stringify(record) } }
  const values = []
  for (const [name, [shape, value]] of Object.entries(tensors)) {
    const start = 4 * values.length
    values.push(...Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => value(i)))
    entries[name] = { dtype: 'F32', shape, data_offsets: [start, 4 * values.length] }
  }
  const text = Buffer.from(JSON.stringify(entries))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([size, text, Buffer.from(new Float32Array(values).buffer)])
}

/** The scan twice, as a 4-D file. */
export function twoFrames(path) {
  const file = gunzipSync(readFileSync(path))
  const voxels = file.subarray(file.readFloatLE(108))
  const twice = Buffer.concat([file, voxels])
  twice.writeInt16LE(4, 40)
  twice.writeInt16LE(2, 48)
  return gzipSync(twice)
}

/**
 * Voxels where two label maps differ though the two highest of the logits `[L, D, H, W]` on the same grid are further
 * apart than `tie`.
 */
export function differences(a, b, logits, tie) {
  const [classes, d, h, w] = logits.shape
  const count = d * h * w
  const found = { differ: 0, ties: 0, wrong: [] }
  for (let i = 0; i < count; i++) {
    // The maps have D fastest, the logits W.
    const map = Math.floor(i / (h * w)) + d * ((Math.floor(i / w) % h) + h * (i % w))
    let [first, second] = [-Infinity, -Infinity]
    for (let c = 0; c < classes; c++) {
      const value = logits.data[c * count + i]
      if (value > first) {
        ;[first, second] = [value, first]
      } else if (value > second) {
        second = value
      }
    }
    const near = first - second < tie
    found.ties += near
    if (a.values[map] !== b.values[map]) {
      found.differ++
      if (!near) {
        found.wrong.push(i)
      }
    }
  }
  return found
}

/** A zip archive of files by name, stored as they are: what nnU-Net exports, but for compression. */
export function zip(files) {
  const parts = []
  const directory = []
  let at = 0
  for (const [name, bytes] of Object.entries(files)) {
    const both = Buffer.alloc(26)
    both.writeUInt16LE(20, 0)
    both.writeUInt32LE(crc32(bytes), 10)
    both.writeUInt32LE(bytes.length, 14)
    both.writeUInt32LE(bytes.length, 18)
    both.writeUInt16LE(Buffer.byteLength(name), 22)
    const place = Buffer.alloc(14)
    place.writeUInt32LE(at, 10)
    directory.push(Buffer.from('PK\x01\x02\x14\x00'), both, place, Buffer.from(name))
    parts.push(Buffer.from('PK\x03\x04'), both, Buffer.from(name), bytes)
    at += 30 + Buffer.byteLength(name) + bytes.length
  }
  const central = Buffer.concat(directory)
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06', 'latin1')
  const count = Object.keys(files).length
  end.writeUInt16LE(count, 8)
  end.writeUInt16LE(count, 10)
  end.writeUInt32LE(central.length, 12)
  end.writeUInt32LE(at, 16)
  return Buffer.concat([...parts, central, end])
}
