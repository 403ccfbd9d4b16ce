//! Several predictions of one scan and their mean: networks, and a network on the mirrored scan.

use std::collections::HashMap;

use super::{PredictError, Predictor};
use crate::dataset::listed;
use crate::gpu::Device;
use crate::host_memory;
use crate::model::Network;
use crate::preprocess::{Placement, Prepared, Preprocessing};
use crate::tensor::Tensor;
use crate::volume::{Reorientation, Volume};

/// Networks that see the same scan, each also mirrored where that is asked for, and whose probabilities are averaged.
#[derive(Debug)]
pub struct Ensemble {
    members: Vec<Predictor>,
    /// The axes (0 to 2: D, H, W of a prepared scan) along which the scan is mirrored in each pass; none first.
    mirrored: Vec<Vec<usize>>,
}

/// What an [`Ensemble`] makes of a scan, on its prepared grid.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// Mean probabilities `[L, D, H, W]`.
    pub probabilities: Tensor,
    /// The mean of the passes' own entropies `[D, H, W]`, in nats.
    pub entropies: Vec<f32>,
    placement: Placement,
}

/// How sure a prediction is, of a whole scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Confidence {
    /// By label, without the background: the Dice that its probabilities let expect, 2 Σ p over the voxels with the label /
    /// (their number + Σ p over all voxels); `None` where no voxel has the label and none is expected.
    pub dice: Vec<Option<f64>>,
    /// Their mean; 0 where nothing was found at all.
    pub quality: f64,
    /// Mean entropy of the mean probabilities over the voxels that are not surely background, over ln L: 0 is sure, 1 a guess.
    pub entropy: f64,
    /// The part of it that the passes' disagreement makes (mutual information, Houlsby et al. 2011); 0 with one pass.
    pub disagreement: f64,
}

impl Ensemble {
    /// Makes networks ready, each with its preprocessing and tensors. `axes` (0 to 2: D, H, W) are those along which scans are
    /// mirrored: with n of them there are 2ⁿ passes a network.
    ///
    /// # Errors
    /// As [`Predictor::with_weights`].
    ///
    /// # Panics
    /// Without members, or if [`Ensemble::check`] refuses them.
    pub async fn new(
        device: &Device,
        members: &[(Network, &Preprocessing, &HashMap<String, Tensor>)],
        axes: &[usize],
    ) -> Result<Ensemble, PredictError> {
        assert!(!members.is_empty());
        let mut predictors = Vec::with_capacity(members.len());
        for (network, preprocessing, tensors) in members {
            assert_eq!(Ensemble::check(members[0].1, preprocessing), Ok(()));
            predictors.push(Predictor::with_weights(device, network, preprocessing, tensors).await?);
        }
        let mirrored = (0..1usize << axes.len()).map(|bits| {
            let chosen = axes.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
            chosen.map(|(_, axis)| *axis).collect()
        });
        Ok(Ensemble {
            members: predictors,
            mirrored: mirrored.collect(),
        })
    }

    /// Whether networks of these preprocessings can be averaged: they have the same labels and bring a scan to the same grid.
    ///
    /// # Errors
    /// What differs.
    pub fn check(first: &Preprocessing, other: &Preprocessing) -> Result<(), String> {
        if first.labels != other.labels {
            let (a, b) = (listed(&first.labels), listed(&other.labels));
            return Err(format!("their labels differ: {a} and {b}"));
        }
        if first.channels.len() != other.channels.len() {
            let (a, b) = (first.channels.len(), other.channels.len());
            return Err(format!("they take {a} and {b} channels"));
        }
        if (first.orientation, first.spacing) != (other.orientation, other.spacing) {
            return Err("they bring scans to other orientations or spacings".into());
        }
        Ok(())
    }

    /// Predictions of one scan.
    pub fn passes(&self) -> usize {
        self.members.len() * self.mirrored.len()
    }

    /// Bytes of host memory that the sums take at most beside a pass: probabilities, logits turned back and entropies.
    fn bytes(&self, placement: &Placement) -> u64 {
        let classes = self.members[0].preprocessing().labels.len();
        host_memory::bytes(&placement.shape(), (3 * classes + 2) * size_of::<f32>())
    }

    /// Mean probabilities of a scan: the softmax of each pass's logits, summed in the order of members and mirrored axes.
    ///
    /// # Errors
    /// As [`Predictor::labels`].
    pub async fn agree(&mut self, device: &Device, scan: &Volume) -> Result<Agreed, PredictError> {
        let mut sum: Option<Agreed> = None;
        let passes = self.passes() as f32;
        let mut prepared = self.members[0].preprocessing().prepare_image(scan)?;
        for i in 0..self.members.len() {
            let preprocessing = self.members[i].preprocessing();
            if i > 0 && preprocessing.channels != self.members[i - 1].preprocessing().channels {
                prepared = preprocessing.prepare_image(scan)?;
            }
            let Prepared { image, placement } = &prepared;
            let placement = *placement;
            device.require(0, self.bytes(&placement))?;
            for axes in self.mirrored.clone() {
                let turn = Reorientation::mirror(&axes);
                let image = Tensor::new(
                    &image.shape,
                    turn.apply(&image.data, image.shape[0], placement.shape()),
                );
                let logits = self.members[i]
                    .logits(device, &Prepared { image, placement })
                    .await?;
                let logits = Tensor::new(
                    &logits.shape,
                    turn.apply(&logits.data, logits.shape[0], placement.shape()),
                );
                let sum = sum.get_or_insert_with(|| Agreed {
                    probabilities: Tensor::zeros(&logits.shape),
                    entropies: vec![0.0; placement.shape().iter().product()],
                    placement,
                });
                sum.add(&logits, 1.0 / passes);
            }
        }
        Ok(sum.expect("one pass at least"))
    }

    /// What scans go through before the first member.
    pub fn preprocessing(&self) -> &Preprocessing {
        self.members[0].preprocessing()
    }
}

/// −Σ p ln p, in nats.
fn entropy(probabilities: impl Iterator<Item = f32>) -> f32 {
    let terms = probabilities.map(|p| if p > 0.0 { -p * p.ln() } else { 0.0 });
    terms.sum::<f32>().max(0.0)
}

impl Agreed {
    /// Adds the softmax of a pass's logits, weighted.
    fn add(&mut self, logits: &Tensor, weight: f32) {
        let voxels = self.entropies.len();
        let classes = logits.shape[0];
        let mut p = vec![0.0; classes];
        for voxel in 0..voxels {
            let at = |class: usize| class * voxels + voxel;
            let highest = (0..classes)
                .map(|c| logits.data[at(c)])
                .fold(f32::NEG_INFINITY, f32::max);
            for (class, p) in p.iter_mut().enumerate() {
                *p = (logits.data[at(class)] - highest).exp();
            }
            let scale = 1.0 / p.iter().sum::<f32>();
            for (class, p) in p.iter_mut().enumerate() {
                *p *= scale;
                self.probabilities.data[at(class)] += weight * *p;
            }
            self.entropies[voxel] += weight * entropy(p.iter().copied());
        }
    }

    /// The label map `[X, Y, Z]` of the scan: of each voxel the likeliest label.
    pub fn labels(&self, preprocessing: &Preprocessing) -> Vec<i32> {
        preprocessing.restore_labels(&self.probabilities, &self.placement)
    }

    /// Probabilities of a label, by its position, `[X, Y, Z]` on the scan's own grid.
    pub fn probability(&self, label: usize) -> Vec<f32> {
        let voxels = self.entropies.len();
        let own = &self.probabilities.data[label * voxels..(label + 1) * voxels];
        self.placement.restore(own)
    }

    /// Entropy of the mean probabilities over ln L, `[X, Y, Z]` on the scan's own grid: 0 is sure, 1 a guess.
    pub fn uncertainty(&self) -> Vec<f32> {
        self.placement.restore(&self.relative_entropies())
    }

    fn at(&self, voxel: usize) -> impl Iterator<Item = f32> {
        let own = self.probabilities.data[voxel..].iter();
        own.step_by(self.entropies.len()).copied()
    }

    fn relative_entropies(&self) -> Vec<f32> {
        let most = (self.probabilities.shape[0] as f32).ln().max(f32::MIN_POSITIVE);
        (0..self.entropies.len())
            .map(|voxel| (entropy(self.at(voxel)) / most).min(1.0))
            .collect()
    }

    /// How sure the prediction is.
    pub fn confidence(&self) -> Confidence {
        let (classes, voxels) = (self.probabilities.shape[0], self.entropies.len());
        let (mut inside, mut all, mut count) =
            (vec![0f64; classes], vec![0f64; classes], vec![0u64; classes]);
        let most = f64::from((classes as f32).ln().max(f32::MIN_POSITIVE));
        let (mut total, mut own, mut counted) = (0f64, 0f64, 0u64);
        for voxel in 0..voxels {
            let mut best = (0, f32::NEG_INFINITY);
            for (class, p) in self.at(voxel).enumerate() {
                all[class] += f64::from(p);
                if p > best.1 {
                    best = (class, p);
                }
            }
            inside[best.0] += f64::from(best.1);
            count[best.0] += 1;
            if self.probabilities.data[voxel] < 0.99 {
                total += f64::from(entropy(self.at(voxel)));
                own += f64::from(self.entropies[voxel]);
                counted += 1;
            }
        }
        let dice = |class: usize| {
            // Less than half a voxel in all is nothing to expect.
            (count[class] > 0 || all[class] >= 0.5)
                .then(|| 2.0 * inside[class] / (count[class] as f64 + all[class]))
        };
        let dice: Vec<Option<f64>> = (1..classes).map(dice).collect();
        let found: Vec<f64> = dice.iter().flatten().copied().collect();
        let counted = counted.max(1) as f64;
        Confidence {
            quality: match found.len() {
                0 => 0.0,
                n => found.iter().sum::<f64>() / n as f64,
            },
            dice,
            entropy: total / counted / most,
            disagreement: ((total - own) / counted / most).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Label;

    fn of(logits: &[&[f32]]) -> Agreed {
        let classes = logits[0].len() / 2;
        let shape = [classes, 1, 1, 2];
        let mut agreed = Agreed {
            probabilities: Tensor::zeros(&shape),
            entropies: vec![0.0; 2],
            placement: Placement::identity([1, 1, 2]),
        };
        for pass in logits {
            agreed.add(&Tensor::new(&shape, pass.to_vec()), 1.0 / logits.len() as f32);
        }
        agreed
    }

    #[test]
    fn a_sure_prediction_is_of_quality_one() {
        let confidence = of(&[&[50.0, -50.0, -50.0, 50.0]]).confidence();
        assert_eq!(confidence.dice, [Some(1.0)]);
        assert_eq!((confidence.quality, confidence.disagreement), (1.0, 0.0));
        assert!(confidence.entropy < 1e-6);
    }

    #[test]
    fn passes_that_disagree_say_so() {
        let (a, b): (&[f32], &[f32]) = (&[20.0, 20.0, 0.0, 0.0], &[0.0, 20.0, 20.0, 0.0]);
        let confidence = of(&[a, b]).confidence();
        // One of two voxels: each pass is sure, their mean a guess.
        assert!((confidence.entropy - 1.0).abs() < 1e-3 && (confidence.disagreement - 1.0).abs() < 1e-3);
        let alone = of(&[a]).confidence();
        assert_eq!(
            (alone.disagreement, alone.dice[0], alone.quality),
            (0.0, None, 0.0)
        );
        let guess = of(&[&[0.0; 4]]).confidence();
        assert!((guess.entropy - 1.0).abs() < 1e-6 && guess.disagreement == 0.0);
    }

    #[test]
    fn networks_of_other_labels_and_grids_are_refused() {
        let one = crate::model::published::unet_tcia();
        assert_eq!(Ensemble::check(&one, &one), Ok(()));
        let label = Label {
            name: "organ".into(),
            value: 1,
        };
        let other = Preprocessing {
            labels: vec![label],
            ..one.clone()
        };
        assert!(Ensemble::check(&one, &other).unwrap_err().contains("1 organ"));
        let coarse = Preprocessing {
            spacing: Some([2.0; 3]),
            ..one.clone()
        };
        assert!(Ensemble::check(&one, &coarse).unwrap_err().contains("spacings"));
    }
}
