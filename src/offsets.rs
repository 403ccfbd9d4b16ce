//! What OBELISK layers have learned: the spread and the extent of their offsets (method section 1, the paper's figure 2).

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::tensor::Tensor;

/// Whether a parameter or state of that name holds a layer's offsets, `[1, K, 1, P, 3]`.
pub fn is_offset(name: &str) -> bool {
    name.starts_with("offset")
}

/// Standard deviation of each layer's offsets by name: over all samples and axes, in normalised coordinates.
pub fn sigmas<'t>(tensors: impl IntoIterator<Item = (&'t String, &'t Tensor)>) -> BTreeMap<String, f64> {
    tensors
        .into_iter()
        .filter(|(name, _)| is_offset(name))
        .map(|(name, tensor)| (name.clone(), deviation(tensor.data.iter().map(|v| *v as f64))))
        .collect()
}

/// Standard deviation about the mean, of the population; 0 of nothing.
fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    (values.map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// The offsets of one layer before and after training. Coordinates are normalised: (x, y, z) with x along W, 2 is the
/// distance of the outer voxels' centres.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerOffsets {
    /// Name of the parameter or state.
    pub name: String,
    /// Coefficients K of the layer.
    pub coefficients: usize,
    /// Samples a coefficient: 1, or 2 for their difference.
    pub samples: usize,
    /// Standard deviation at the start along x, y, z.
    pub initial_sigma: [f64; 3],
    /// Standard deviation after training along x, y, z.
    pub sigma: [f64; 3],
    /// Radii around the mean location that hold shares of the offsets.
    pub extents: Vec<Extent>,
    /// The offsets at the start.
    #[serde(skip)]
    pub initial: Vec<[f64; 3]>,
    /// The offsets after training.
    #[serde(skip)]
    pub learned: Vec<[f64; 3]>,
}

/// The radius |o| that holds a share of a layer's offsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Extent {
    /// The share, 0 … 1: the smallest radius with at least so many offsets.
    pub share: f64,
    /// In normalised coordinates.
    pub normalised: f64,
    /// In voxels of the grid; where axes differ in length, not a multiple of `normalised`.
    pub voxels: f64,
    /// In millimetres, where the spacing is known.
    pub mm: Option<f64>,
}

/// Shares of [`LayerOffsets::extents`].
const SHARES: [f64; 3] = [0.5, 0.95, 1.0];

/// The offsets of each layer in `learned` with those of the same name in `initial`, on a grid of so many voxels along
/// D, H, W and with this spacing in mm. Layers that `initial` lacks are left out.
pub fn layers(
    initial: &HashMap<String, Tensor>,
    learned: &HashMap<String, Tensor>,
    grid: [usize; 3],
    spacing: Option<[f64; 3]>,
) -> Vec<LayerOffsets> {
    let names: std::collections::BTreeSet<&String> = learned.keys().filter(|n| is_offset(n)).collect();
    names
        .into_iter()
        .filter_map(|name| Some(layer(name, initial.get(name)?, &learned[name], grid, spacing)))
        .collect()
}

fn layer(
    name: &str,
    initial: &Tensor,
    learned: &Tensor,
    grid: [usize; 3],
    spacing: Option<[f64; 3]>,
) -> LayerOffsets {
    let points = |t: &Tensor| -> Vec<[f64; 3]> {
        let point = |xyz: &[f32]| std::array::from_fn(|a| xyz[a] as f64);
        t.data.chunks_exact(3).map(point).collect()
    };
    let sigma = |points: &[[f64; 3]]| std::array::from_fn(|a| deviation(points.iter().map(|p| p[a])));
    let (before, after) = (points(initial), points(learned));
    // x is along W, the last of the grid's axes
    let voxels: [f64; 3] = std::array::from_fn(|a| (grid[2 - a].max(1) - 1) as f64 / 2.0);
    let millimetres = spacing.map(|mm| std::array::from_fn(|a| voxels[a] * mm[2 - a]));
    let extents = SHARES.map(|share| Extent {
        share,
        normalised: radius(&after, [1.0; 3], share),
        voxels: radius(&after, voxels, share),
        mm: millimetres.map(|scale| radius(&after, scale, share)),
    });
    LayerOffsets {
        name: name.to_owned(),
        coefficients: learned.shape.get(1).copied().unwrap_or(0),
        samples: learned.shape.get(3).copied().unwrap_or(1),
        initial_sigma: sigma(&before),
        sigma: sigma(&after),
        extents: extents.to_vec(),
        initial: before,
        learned: after,
    }
}

/// The smallest |scale · point| that at least `share` of the points don't exceed; 0 of none.
fn radius(points: &[[f64; 3]], scale: [f64; 3], share: f64) -> f64 {
    let length = |p: &[f64; 3]| {
        p.iter()
            .zip(scale)
            .map(|(v, s)| (v * s).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let mut lengths: Vec<f64> = points.iter().map(length).collect();
    lengths.sort_by(f64::total_cmp);
    let rank = (share * lengths.len() as f64).ceil() as usize;
    lengths.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four offsets along the axes and one binary pair: |o| of 0.1, 0.2, 0.3 and 0.4 in all.
    fn offsets() -> Tensor {
        let data = vec![0.1, 0.0, 0.0, 0.0, -0.2, 0.0, 0.0, 0.0, 0.3, -0.4, 0.0, 0.0];
        Tensor::new(&[1, 2, 1, 2, 3], data)
    }

    #[test]
    fn spreads_are_those_by_hand() {
        let tensors = HashMap::from([
            ("offset1".to_owned(), offsets()),
            ("linear1a.weight".to_owned(), Tensor::zeros(&[2])),
        ]);
        let found = sigmas(&tensors);
        assert_eq!(found.len(), 1);
        // twelve numbers: sum −0.2, sum of squares 0.30
        let expected = (0.30 / 12.0 - (0.2f64 / 12.0).powi(2)).sqrt();
        assert!((found["offset1"] - expected).abs() < 1e-7, "{found:?}");
    }

    #[test]
    fn extents_are_those_by_hand() {
        let tensors = HashMap::from([("offset1".to_owned(), offsets())]);
        // 21 voxels of 1 mm along z, 41 of 2 mm along y, 61 of 0.5 mm along x
        let found = layers(&tensors, &tensors, [21, 41, 61], Some([1.0, 2.0, 0.5]));
        let [layer] = &found[..] else { panic!("{found:?}") };
        assert_eq!((layer.coefficients, layer.samples), (2, 2));
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b} in {layer:?}");
        // x: 0.1, 0, 0, −0.4; y: 0, −0.2, 0, 0; z: 0, 0, 0.3, 0
        close(layer.sigma[0], (0.17f64 / 4.0 - 0.075 * 0.075).sqrt());
        close(layer.sigma[1], (0.04f64 / 4.0 - 0.05 * 0.05).sqrt());
        close(layer.sigma[2], (0.09f64 / 4.0 - 0.075 * 0.075).sqrt());
        // voxels: 3, 4, 3, 12; mm: 1.5, 8, 3, 6
        for (extent, expected) in layer.extents.iter().zip([
            (0.5, 0.2, 3.0, 3.0),
            (0.95, 0.4, 12.0, 8.0),
            (1.0, 0.4, 12.0, 8.0),
        ]) {
            close(extent.share, expected.0);
            close(extent.normalised, expected.1);
            close(extent.voxels, expected.2);
            close(extent.mm.unwrap(), expected.3);
        }
        assert_eq!(layers(&HashMap::new(), &tensors, [21, 41, 61], None).len(), 0);
    }
}
