// The scan and its labels in three planes and 3D, drawn by NiiVue.

import { MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from '@niivue/niivue'
import type { NiiVueLocation } from '@niivue/niivue'
import { colour } from './colours'
import type { LabelVolume } from './messages'

export class Viewer {
  /** Called when the crosshair moves, with the position in words and in voxels. */
  onLocation: (text: string, voxel: readonly number[]) => void = () => {}

  #niivue = new Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.89, 0.71, 0.36, 0.9],
    crosshairWidth: 0.3,
    crosshairWidthUnit: 'percent',
    show3Dcrosshair: true,
    multiplanarShowRender: SHOW_RENDER.ALWAYS,
    dragAndDropEnabled: false,
    isColorbar: false,
    fontSizeScaling: 0.3,
    logLevel: 'error',
    loadingText: '',
  })
  #canvas: HTMLCanvasElement
  #attached: Promise<unknown>
  #labels: LabelVolume[] = []
  #opacity = 0.6

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas
    this.#niivue.onLocationChange = (location) => {
      const { mm, vox, values } = location as NiiVueLocation
      const at = [...mm].slice(0, 3).map((v) => v.toFixed(0)).join(', ')
      const index = values[1]?.value
      const label = this.#labels.find(({ value }) => value === index)
      this.onLocation(`${at} mm · ${format(values[0]?.value ?? 0)}${label ? ` · ${label.name}` : ''}`, [...vox])
    }
    this.#attached = this.#niivue.attachToCanvas(canvas).then((niivue) => {
      niivue.setSliceType(SLICE_TYPE.MULTIPLANAR)
      niivue.setMultiplanarLayout(MULTIPLANAR_TYPE.GRID)
    })
  }

  /** Shows a scan instead of what was there. */
  async showScan(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<void> {
    await this.#attached
    for (const volume of [...this.#niivue.volumes].reverse()) {
      this.#niivue.removeVolume(volume)
    }
    this.#labels = []
    this.#niivue.addVolume(await image(bytes, name))
  }

  /** Lays labels over the scan. */
  async showLabels(bytes: Uint8Array<ArrayBuffer>, labels: LabelVolume[]): Promise<void> {
    while (this.#niivue.volumes.length > 1) {
      this.#niivue.removeVolumeByIndex(1)
    }
    this.#labels = labels
    const overlay = await image(bytes, 'labels.nii.gz')
    overlay.opacity = this.#opacity
    this.#niivue.addVolume(overlay)
    this.setVisible(new Set(labels.map(({ value }) => value)))
  }

  /** Draws the labels of these values only. */
  setVisible(visible: Set<number>): void {
    const overlay = this.#niivue.volumes[1]
    if (!overlay) {
      return
    }
    const colours = this.#labels.map((_, index) => colour(index))
    overlay.setColormapLabel({
      R: [0, ...colours.map(([r]) => r)],
      G: [0, ...colours.map(([, g]) => g)],
      B: [0, ...colours.map(([, , b]) => b)],
      A: [0, ...this.#labels.map(({ value }) => (visible.has(value) ? 255 : 0))],
      I: [0, ...this.#labels.map(({ value }) => value)],
      labels: ['', ...this.#labels.map(({ name }) => name)],
    })
    this.#niivue.updateGLVolume()
  }

  setOpacity(opacity: number): void {
    this.#opacity = opacity
    if (this.#niivue.volumes.length > 1) {
      this.#niivue.setOpacity(1, opacity)
    }
  }

  /** What is on the canvas, as PNG. */
  async picture(): Promise<Blob> {
    this.#niivue.drawScene()
    return new Promise((resolve, reject) =>
      this.#canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('The browser drew no picture.')))),
    )
  }
}

function format(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toPrecision(4)
}

function image(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<NVImage> {
  return NVImage.loadFromFile({ file: new File([bytes], name), colormap: 'gray' })
}
