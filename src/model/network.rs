//! The description of a network: its name, its builder, and what it requires.

use super::nnunet::Stages;
use super::{Architecture, Builder, Class, MeshNet};
use crate::graph::{Graph, GraphError, Value};
use crate::preprocess::Preprocessing;

/// A network by name.
#[derive(Clone, Copy)]
pub struct Network {
    /// Name in settings and in weight files.
    pub name: &'static str,
    /// One line for `obelisk info`.
    pub about: &'static str,
    /// What it is made of.
    pub layers: Layers,
    /// What each axis of an image is a multiple of.
    pub multiple: [usize; 3],
    /// For networks that are as published: how the authors' script reads scans, for weights that say nothing of it.
    pub published: Option<fn() -> Preprocessing>,
    /// For networks that take one size of scan only.
    pub fixed: Option<Fixed>,
    /// For networks that train and predict at any locations: the network without its regular grid.
    pub points: Option<PointNetwork>,
    /// Whether it has OBELISK layers: parameters or states named `offset…`, shape `[1, K, 1, P, 3]`.
    pub obelisk_layers: bool,
}

/// What a network is made of.
#[derive(Clone, Copy)]
pub enum Layers {
    /// What a function adds.
    Function(Build),
    /// A chain of layers that the name lists.
    Chain(MeshNet),
    /// Stages that the name lists.
    NnUNet(Stages),
}

/// The one size that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Voxels of the scan along D, H, W.
    pub size: [usize; 3],
    /// Labels, the background included.
    pub labels: usize,
    /// Whether the network halves the scan first, so that an odd size of one voxel less does as well.
    pub halved: bool,
}

/// A network whose logits at a location depend on no other location's.
#[derive(Clone, Copy, Debug)]
pub struct PointNetwork {
    /// What a scan goes through once, whatever the locations: image `[N, C, D, H, W]` (flat) to one of the same shape.
    /// Has no parameters.
    pub smooth: fn(&mut Graph, image: Value) -> Result<Value, GraphError>,
    /// Logits at the sites' locations, one site after the other along N: a map `[ΣN, labels, d, h, w]`, with
    /// [`At::Points`] `[ΣN, labels, 1, 1, S]`. All sites have as many locations.
    pub at: fn(&mut Builder, sites: &[Site], labels: usize) -> Result<Value, GraphError>,
    /// Where a regular grid (d, h, w) that is upsampled to the image has its points.
    pub grid: fn([usize; 3]) -> At,
}

/// Smoothed images and where a [`PointNetwork`] looks at them.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Flat `[N, C, D, H, W]`, smoothed.
    pub image: Value,
    /// The locations.
    pub at: At,
    /// Flat `[1, 3, 4]`: the offsets are multiplied by its first three columns (affine augmentation); `None` leaves them.
    pub theta: Option<Value>,
}

/// Locations in an image.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// A regular grid (d, h, w) whose outer points are the centres of the outer voxels.
    Grid([usize; 3]),
    /// The centres of the cells of a regular grid (d, h, w) that divides the image evenly.
    Cells([usize; 3]),
    /// Flat `[N, S, 3]`: (x, y, z) with x along W, −1 and +1 at the centres of the outer voxels.
    Points(Value),
}

/// A network's function; see [`Network::build`].
pub type Build = fn(&mut Builder, image: Value, labels: usize) -> Result<Value, GraphError>;

impl Network {
    pub(super) const fn new(name: &'static str, about: &'static str, build: Build) -> Self {
        Network {
            name,
            about,
            layers: Layers::Function(build),
            multiple: [1; 3],
            published: None,
            fixed: None,
            points: None,
            obelisk_layers: false,
        }
    }

    pub(super) const fn chain(self, chain: MeshNet) -> Self {
        Network {
            layers: Layers::Chain(chain),
            ..self
        }
    }

    pub(super) const fn multiple_of(self, multiple: [usize; 3]) -> Self {
        Network { multiple, ..self }
    }

    pub(super) const fn at_points(self, points: PointNetwork) -> Self {
        Network {
            points: Some(points),
            obelisk_layers: true,
            ..self
        }
    }

    pub(super) const fn fixed(self, fixed: Fixed) -> Self {
        Network {
            fixed: Some(fixed),
            ..self
        }
    }

    /// As published, for the authors' weights.
    pub(super) const fn published(self, preprocessing: fn() -> Preprocessing) -> Self {
        Network {
            published: Some(preprocessing),
            ..self
        }
    }

    pub(super) const fn with_obelisk_layers(self) -> Self {
        Network {
            obelisk_layers: true,
            ..self
        }
    }

    /// Adds the network to a graph: image `[N, C, D, H, W]` (flat) to logits `[N, labels, D, H, W]` (map).
    ///
    /// # Errors
    /// An image or a number of labels that it does not take.
    pub fn build(&self, b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
        match &self.layers {
            Layers::Function(function) => function(b, image, labels),
            Layers::Chain(chain) => chain.build(b, image, labels),
            Layers::NnUNet(stages) => Architecture::from(*stages).build(b, image, labels, true),
        }
    }

    /// The network of that architecture.
    pub(super) fn nnunet(architecture: Architecture) -> Network {
        let usual = match architecture.class {
            Class::Plain => super::nnunet::NNUNET,
            Class::Residual => super::nnunet::NNUNET_RESENC,
        };
        Network {
            multiple: architecture.multiple(),
            layers: Layers::NnUNet(Stages::from(&architecture)),
            ..usual
        }
    }

    /// How many voxels away along each axis an output sees the image at most, where that is known. Slabs of an image with as many
    /// planes beyond what is kept then give what the whole image does.
    pub fn reach(&self) -> Option<usize> {
        let Layers::Chain(chain) = &self.layers else {
            return None;
        };
        Some(chain.layers().map(|(_, dilation)| dilation).sum())
    }

    /// The size of scan and the number of labels that it is described with: the published ones, or 144³ and 9; of nnU-Net's
    /// networks its largest usual patch, 128³.
    pub fn usual(&self) -> ([usize; 3], usize) {
        match (self.fixed, self.published) {
            (Some(fixed), _) => (fixed.size, fixed.labels),
            (None, Some(preprocessing)) => ([144; 3], preprocessing().labels.len()),
            (None, None) if self.multiple != [1; 3] => ([128; 3], 9),
            (None, None) => ([144; 3], 9),
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
