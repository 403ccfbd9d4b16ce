// A DICOM series to one NIfTI file, by dcm2niix, loaded when first needed.

import type { Opened } from './files'
import { read } from './files'

export async function convert(files: File[]): Promise<Opened> {
  const { Dcm2niix } = await import('@niivue/dcm2niix')
  const converter = new Dcm2niix()
  await converter.init()
  const made: File[] = await converter.input(files).run()
  const scans = made.filter(({ name }) => name.endsWith('.nii'))
  if (scans.length === 0) {
    throw new Error('These files hold no DICOM series that dcm2niix can convert.')
  }
  // Series of one folder come as several files: the largest is the scan, others are scouts.
  return read(scans.reduce((a, b) => (b.size > a.size ? b : a)))
}
