// A DICOM series of a scan, written plainly: MR images, explicit little endian, one file a slice.

import { gunzipSync, gzipSync } from 'node:zlib'

/** Whole numbers in place of a float32 scan's voxels, as DICOM has them. */
export function wholeNumbers(niigz) {
  const file = gunzipSync(niigz)
  for (let at = file.readFloatLE(108); at < file.length; at += 4) {
    file.writeFloatLE(Math.round(file.readFloatLE(at)), at)
  }
  return gzipSync(file)
}

/** The slices of a float32 scan of whole numbers, with axes to the right, front and top and an unturned grid. */
export function series(niigz) {
  const file = gunzipSync(niigz)
  const [width, height, count] = [1, 2, 3].map((i) => file.readInt16LE(40 + 2 * i))
  const [dx, dy, dz] = [1, 2, 3].map((i) => file.readFloatLE(76 + 4 * i))
  const [x, y, z] = [0, 1, 2].map((row) => file.readFloatLE(280 + 16 * row + 12))
  const voxels = file.readFloatLE(108)
  return Array.from({ length: count }, (_, k) => {
    const pixels = Buffer.alloc(2 * width * height)
    for (let i = 0; i < width * height; i++) {
      pixels.writeUInt16LE(file.readFloatLE(voxels + 4 * (k * width * height + i)), 2 * i)
    }
    return slice([
      element(0x0008, 0x0016, 'UI', MR_IMAGE),
      element(0x0008, 0x0018, 'UI', `1.2.826.0.1.3680043.10.1.3.${k + 1}`),
      element(0x0008, 0x0060, 'CS', 'MR'),
      element(0x0010, 0x0010, 'PN', 'Nobody'),
      element(0x0018, 0x0050, 'DS', String(dz)),
      element(0x0020, 0x000d, 'UI', '1.2.826.0.1.3680043.10.1.1'),
      element(0x0020, 0x000e, 'UI', '1.2.826.0.1.3680043.10.1.2'),
      element(0x0020, 0x0011, 'IS', '1'),
      element(0x0020, 0x0013, 'IS', String(k + 1)),
      // DICOM's x and y are to the left and the back.
      element(0x0020, 0x0032, 'DS', [-x, -y, z + k * dz].join('\\')),
      element(0x0020, 0x0037, 'DS', '-1\\0\\0\\0\\-1\\0'),
      element(0x0028, 0x0002, 'US', 1),
      element(0x0028, 0x0004, 'CS', 'MONOCHROME2'),
      element(0x0028, 0x0010, 'US', height),
      element(0x0028, 0x0011, 'US', width),
      element(0x0028, 0x0030, 'DS', [dy, dx].join('\\')),
      element(0x0028, 0x0100, 'US', 16),
      element(0x0028, 0x0101, 'US', 16),
      element(0x0028, 0x0102, 'US', 15),
      element(0x0028, 0x0103, 'US', 0),
      element(0x7fe0, 0x0010, 'OW', pixels),
    ])
  })
}

const MR_IMAGE = '1.2.840.10008.5.1.4.1.1.4'
const EXPLICIT_LITTLE_ENDIAN = '1.2.840.10008.1.2.1'

function element(group, number, kind, value) {
  let bytes = value
  if (kind === 'US') {
    bytes = Buffer.alloc(2)
    bytes.writeUInt16LE(value)
  } else if (typeof value === 'string') {
    // Values have an even length: names are padded by a zero, texts by a space.
    bytes = Buffer.from(value.length % 2 ? value + (kind === 'UI' ? '\0' : ' ') : value)
  }
  const long = kind === 'OW' || kind === 'OB'
  const head = Buffer.alloc(long ? 12 : 8)
  head.writeUInt16LE(group)
  head.writeUInt16LE(number, 2)
  head.write(kind, 4)
  if (long) {
    head.writeUInt32LE(bytes.length, 8)
  } else {
    head.writeUInt16LE(bytes.length, 6)
  }
  return Buffer.concat([head, bytes])
}

function slice(elements) {
  const meta = Buffer.concat([
    element(0x0002, 0x0001, 'OB', Buffer.from([0, 1])),
    element(0x0002, 0x0002, 'UI', MR_IMAGE),
    element(0x0002, 0x0010, 'UI', EXPLICIT_LITTLE_ENDIAN),
  ])
  const length = Buffer.alloc(4)
  length.writeUInt32LE(meta.length)
  const group = Buffer.alloc(8)
  group.writeUInt16LE(0x0002)
  group.write('UL', 4)
  group.writeUInt16LE(4, 6)
  return Buffer.concat([Buffer.alloc(128), Buffer.from('DICM'), group, length, meta, ...elements])
}
