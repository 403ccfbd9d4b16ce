// A DICOM series to one NIfTI file, by dcm2niix, loaded when first needed.

import type { Opened } from './files'
import { read } from './files'

export async function convert(files: File[]): Promise<Opened> {
  const { Dcm2niix } = await import('@niivue/dcm2niix')
  const converter = new Dcm2niix()
  try {
    await converter.init()
    const made: File[] = await converter
      .input(files)
      .run()
      .catch((reason) => {
        console.warn('dcm2niix:', reason)
        return []
      })
    const scans = made.filter(({ name }) => name.endsWith('.nii'))
    if (scans.length === 0) {
      const error = new Error(`${named(files)}: neither NIfTI nor a DICOM series that dcm2niix can convert.`)
      error.name = 'ScanError'
      throw error
    }
    // Series of one folder come as several files: the largest is the scan, others are scouts.
    return await read(scans.reduce((a, b) => (b.size > a.size ? b : a)))
  } finally {
    converter.worker?.terminate()
  }
}

function named(files: File[]): string {
  return files.length === 1 ? files[0].name : `${files[0].name} and ${files.length - 1} more`
}
