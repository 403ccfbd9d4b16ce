//! Dense training: every voxel of a few scans a step, uploaded and augmented anew each time.

use super::augment::{Drawn, Histogram};
use super::data::{Foreground, epoch_order};
use super::{Settings, TrainError, TrainingData, stream};
use crate::gpu::{Device, Executable};
use crate::tensor::Tensor;

/// Where the inputs of dense batches come from.
pub struct Dense<'a> {
    settings: &'a Settings,
    data: &'a TrainingData,
    grid: [usize; 3],
    batches: usize,
    /// By case; empty where intensities stay.
    histograms: Vec<Vec<Histogram>>,
    /// By case; empty where crops are placed anywhere.
    foreground: Vec<Foreground>,
}

impl<'a> Dense<'a> {
    pub fn new(settings: &'a Settings, data: &'a TrainingData, grid: [usize; 3]) -> Result<Self, TrainError> {
        if settings.synthetic != data.synthesis.is_some() {
            let message = match settings.synthetic {
                true => "images are made of label maps only where dataset.json has a `synthesis` table",
                false => "the dataset has label maps alone; a synthetic training makes images of them",
            };
            return Err(TrainError::Settings(message.into()));
        }
        let batches = data.training.len() / settings.batch;
        if batches < settings.accumulate {
            return Err(TrainError::FewCases {
                cases: data.training.len(),
                step: settings.batch.saturating_mul(settings.accumulate),
            });
        }
        let cases = || data.training.iter();
        let histograms = match settings.stages().shades {
            true => cases()
                .map(|case| match data.synthesis {
                    Some(_) => vec![Histogram::made()],
                    None => Histogram::of(&case.image),
                })
                .collect(),
            false => Vec::new(),
        };
        let foreground = match settings.foreground > 0.0 {
            true => cases()
                .map(|case| Foreground::of(&case.labels, data.synthesis.as_ref()))
                .collect(),
            false => Vec::new(),
        };
        Ok(Dense {
            settings,
            data,
            grid,
            batches,
            histograms,
            foreground,
        })
    }

    /// One pass over the cases; the remainder of a batch is dropped.
    pub fn batches(&self) -> usize {
        self.batches
    }

    fn shape(&self) -> [usize; 5] {
        let [d, h, w] = self.grid;
        [
            self.settings.batch,
            self.data.preprocessing.channels.len(),
            d,
            h,
            w,
        ]
    }

    /// The cases of a batch.
    pub fn cases(&self, epoch: usize, position: usize) -> Vec<usize> {
        let Settings { seed, batch, .. } = *self.settings;
        let order = epoch_order(seed, epoch, self.data.training.len());
        order[position * batch..(position + 1) * batch].to_vec()
    }

    pub fn upload(
        &self,
        device: &Device,
        executable: &Executable,
        epoch: usize,
        position: usize,
    ) -> Result<(), TrainError> {
        let Settings {
            seed, batch, affine, ..
        } = *self.settings;
        let spacing = self.data.preprocessing.grid_spacing();
        let shape @ [_, _, d, h, w] = self.shape();
        let cases = self.cases(epoch, position);
        let mut image = Vec::with_capacity(shape.iter().product());
        let mut labels = Vec::with_capacity(batch * d * h * w);
        let mut drawn = Drawn::default();
        for (slot, case) in cases.iter().enumerate() {
            let mut rng = stream(seed, epoch * self.batches + position, slot);
            let foreground = self.foreground.get(*case);
            let foreground = foreground.map(|voxels| (voxels, self.settings.foreground));
            let (cropped, classes) = self.data.training[*case].crop_about(self.grid, foreground, &mut rng);
            image.extend(cropped.data);
            labels.extend(classes.data);
            let histograms = self.histograms.get(*case).map_or(&[][..], Vec::as_slice);
            let place = (self.grid, spacing);
            let augment = &self.settings.augment;
            augment.draw(&mut rng, affine, place, histograms, &mut drawn);
            if let Some(synthesis) = &self.data.synthesis {
                drawn.make(&mut rng, synthesis);
            }
        }
        if self.data.synthesis.is_none() {
            executable.upload(device, "image", &Tensor::new(&shape, image))?;
        }
        executable.upload(device, "labels", &Tensor::new(&[batch, 1, d, h, w], labels))?;
        for (name, tensor) in drawn.inputs(self.settings.stages(), batch, shape[1], self.grid) {
            executable.upload(device, name, &tensor)?;
        }
        Ok(())
    }
}
