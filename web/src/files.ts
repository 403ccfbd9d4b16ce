// Files in and out of the page.

/** A file that the user chose, whole. */
export interface Opened {
  name: string
  bytes: Uint8Array<ArrayBuffer>
  /** Of a model of several files: those, by their paths in the folder `name`; `bytes` is empty then. */
  files?: Opened[]
}

/** Where dropped files lay in dropped folders. */
const paths = new WeakMap<File, string>()

/** A file's path from the folder on that was chosen or dropped, or its name. */
function pathOf(file: File): string {
  return paths.get(file) ?? (file.webkitRelativePath || file.name)
}

/** Files of weights, each a model by itself. */
export const isModel = ({ name }: File) => /\.(safetensors|pth|zip)$/i.test(name)

/** A model that is a folder among these files: a network of brainchop's, or nnU-Net's results; `undefined` where there is none. */
export async function folderModel(files: File[]): Promise<Opened | undefined> {
  const main = files.find(({ name }) => name === 'model.json') ?? files.find(({ name }) => name === 'plans.json')
  if (!main) {
    return undefined
  }
  const folder = pathOf(main).split('/').slice(0, -1)
  const prefix = folder.map((part) => `${part}/`).join('')
  const own = files.filter((file) => pathOf(file).startsWith(prefix) && !/\.(nii|gz)$/i.test(file.name))
  const opened = await Promise.all(own.map(read))
  const named = opened.map(({ bytes }, i) => ({ name: pathOf(own[i]).slice(prefix.length), bytes }))
  return { name: folder.at(-1) ?? main.name, bytes: new Uint8Array(), files: named }
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
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))
    paths.set(file, entry.fullPath.replace(/^\//, ''))
    return [file]
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
