// Files in and out of the page.

/** A file that the user chose, whole. */
export interface Opened {
  name: string
  bytes: Uint8Array<ArrayBuffer>
}

export async function read(file: File): Promise<Opened> {
  return { name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) }
}

/** A file that comes with the page. */
export async function fetchFile(url: string, name: string): Promise<Opened> {
  const response = await fetch(url)
  if (!response.ok) {
    throw new Error(`${name} could not be loaded (${response.status}). Reload the page.`)
  }
  return { name, bytes: new Uint8Array(await response.arrayBuffer()) }
}

/** Offers bytes for saving. */
export function save(content: BlobPart, name: string, type = 'application/octet-stream'): void {
  const url = URL.createObjectURL(new Blob([content], { type }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  // Time for the browser to take it.
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}

/** The name without folder and ending. */
export function stem(name: string): string {
  return name.replace(/^.*[/\\]/, '').replace(/\.(nii\.gz|nii|gz)$/i, '')
}

/** All files of a drop, those in dropped folders too. */
export async function dropped(transfer: DataTransfer): Promise<File[]> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null)
  const files = await Promise.all(entries.map(within))
  return entries.length > 0 ? files.flat() : [...transfer.files]
}

async function within(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) {
    return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))]
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader()
  const entries: FileSystemEntry[] = []
  for (;;) {
    // A reader gives a folder in portions, an empty one at the end.
    const portion = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject))
    if (portion.length === 0) {
      return (await Promise.all(entries.map(within))).flat()
    }
    entries.push(...portion)
  }
}
