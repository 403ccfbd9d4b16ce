// The networks that come with the page.

import hippocampus from '../../examples/weights/hippocampus.safetensors?url'
import visceral from '../../examples/weights/obelisk_visceral.safetensors?url'
import tcia from '../../tests/reference/obeliskhybrid_tcia_fold1/weights.safetensors?url'

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
  {
    name: 'Eight abdominal organs (CT)',
    about:
      'The published hybrid network for TCIA’s pancreas CT, in the authors’ weights: scans cropped and resampled to 144³ voxels as its authors did.',
    url: tcia,
  },
  {
    name: 'Seven abdominal structures (CT, live)',
    about:
      'The original OBELISK network for VISCERAL’s whole-body CT, in the authors’ weights. It can label single slices while the crosshair moves.',
    url: visceral,
  },
]
