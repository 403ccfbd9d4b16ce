// The scan and its labels in three planes and 3D, drawn by NiiVue.

import { MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from '@niivue/niivue'
import type { NiiVueLocation } from '@niivue/niivue'
import { mat4, vec4 } from 'gl-matrix'
import { colour } from './colours'

/** A label by its number and name. */
interface Label {
  value: number
  name: string
}

/** NiiVue, but labels are drawn as the voxels they are: in between two of them there is no third. The scan stays smooth. */
class LabelNiivue extends Niivue {
  override updateInterpolation(layer: number, isForceLinear = false): void {
    this.opts.isNearestInterpolation = layer > 0
    super.updateInterpolation(layer, isForceLinear && layer === 0)
  }
}

export class Viewer {
  /** Called when the crosshair moves, with the position in words. */
  onLocation: (text: string) => void = () => {}

  #niivue = new LabelNiivue({
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
  #labels: Label[] = []
  #opacity = 0.6

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas
    this.#niivue.onLocationChange = (location) => {
      const { mm, values } = location as NiiVueLocation
      const at = [...mm].slice(0, 3).map((v) => v.toFixed(0)).join(', ')
      const index = values[1]?.value
      const label = this.#labels.find(({ value }) => value === index)
      this.onLocation(`${at} mm · ${format(values[0]?.value ?? 0)}${label ? ` · ${label.name}` : ''}`)
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
  async showLabels(bytes: Uint8Array<ArrayBuffer>, labels: Label[]): Promise<void> {
    this.#overlay(await image(bytes, 'labels.nii.gz'), labels)
  }

  /** Lays an empty label map over the scan, for `drawPlanes`. */
  startPlanes(labels: Label[]): void {
    const empty = NVImage.zerosLike(this.#niivue.volumes[0], 'uint8')
    if (empty.hdr) {
      ;[empty.hdr.scl_slope, empty.hdr.scl_inter] = [1, 0]
    }
    this.#overlay(empty, labels)
  }

  /** Takes labels off the scan. */
  removeLabels(): void {
    while (this.#niivue.volumes.length > 1) {
      this.#niivue.removeVolumeByIndex(1)
    }
    this.#labels = []
  }

  /** Draws the labels of the three planes through a voxel, and nothing else. */
  drawPlanes(voxel: readonly number[], planes: Int32Array[]): void {
    const overlay = this.#niivue.volumes[1]
    const dims = overlay?.hdr?.dims
    if (!overlay?.img || !dims) {
      return
    }
    const shape = [dims[1], dims[2], dims[3]]
    const stride = [1, shape[0], shape[0] * shape[1]]
    const map = overlay.img
    map.fill(0)
    planes.forEach((plane, axis) => {
      const [u, v] = [[1, 2], [0, 2], [0, 1]][axis]
      plane.forEach((value, i) => {
        const at = voxel[axis] * stride[axis] + (i % shape[u]) * stride[u] + Math.floor(i / shape[u]) * stride[v]
        map[at] = value
      })
    })
    this.#niivue.updateGLVolume()
  }

  /** The crosshair in the scan's own voxels. */
  get voxel(): number[] {
    const affine = this.#niivue.volumes[0]?.hdr?.affine
    const dims = this.#niivue.volumes[0]?.hdr?.dims
    if (!affine || !dims) {
      return [0, 0, 0]
    }
    const inverse = mat4.invert(mat4.create(), mat4.transpose(mat4.create(), affine.flat() as unknown as mat4))
    const mm = this.#niivue.frac2mm(this.#niivue.scene.crosshairPos)
    const [i, j, k] = vec4.transformMat4(vec4.create(), [mm[0], mm[1], mm[2], 1], inverse ?? mat4.create())
    return [i, j, k].map((v, axis) => Math.min(Math.max(Math.round(v), 0), dims[axis + 1] - 1))
  }

  #overlay(overlay: NVImage, labels: Label[]): void {
    this.removeLabels()
    this.#labels = labels
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
