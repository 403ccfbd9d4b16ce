// The sample cases to train on, fetched when a training starts.

import { fetchFile } from './files'
import type { Case } from './messages'

type Urls = Record<string, string>
const images: Urls = import.meta.glob('../../examples/data/imagesTr/*.nii.gz', { query: '?url', import: 'default', eager: true })
const labels: Urls = import.meta.glob('../../examples/data/labelsTr/*.nii.gz', { query: '?url', import: 'default', eager: true })

export function sampleCases(): Promise<Case[]> {
  return Promise.all(
    Object.entries(images).map(async ([path, url]) => {
      const name = path.replace(/^.*\//, '')
      const [image, map] = await Promise.all([
        fetchFile(url, name),
        fetchFile(labels[path.replace('imagesTr', 'labelsTr')], `the labels of ${name}`),
      ])
      return { name, image: image.bytes, labels: map.bytes }
    }),
  )
}
