// The networks that come with the page.

import hippocampus from '../../examples/weights/hippocampus.safetensors?url'

export interface Choice {
  name: string
  about: string
  url: string
}

export const MODELS: Choice[] = [
  {
    name: 'Hippocampus (MR)',
    about: 'Anterior and posterior hippocampus in cropped T1-weighted MR. Trained here on the Medical Segmentation Decathlon.',
    url: hippocampus,
  },
]
