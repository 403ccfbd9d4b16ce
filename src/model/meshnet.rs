//! MeshNet (Fedorov et al. 2017): a chain of 3×3×3 convolutions of growing and shrinking dilation at full resolution, as
//! brainchop's networks are.

use super::{Builder, Conv, Layers, Network};
use crate::graph::{GraphError, Value};
use crate::op::activation::Activation;

/// Most layers of a chain, the last one left out.
const MOST: usize = 24;

/// A chain: 3×3×3 convolutions with bias, each with an activation, then a 1×1×1 convolution with bias to the labels.
/// Parameters `layers.I.weight` and `layers.I.bias`.
///
/// In `--arch` and in weight files it is `meshnet:ACTIVATION:CHANNELSxDILATION,…`, such as `meshnet:elu:5x1,5x2,5x4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshNet {
    /// Behind every layer but the last.
    pub activation: MeshActivation,
    layers: [(u16, u16); MOST],
    count: usize,
}

/// The activations of brainchop's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshActivation {
    /// ReLU.
    Relu,
    /// ELU.
    Elu,
    /// GELU.
    Gelu,
}

impl MeshActivation {
    const ALL: [(&'static str, MeshActivation); 3] = [
        ("relu", MeshActivation::Relu),
        ("elu", MeshActivation::Elu),
        ("gelu", MeshActivation::Gelu),
    ];

    /// The activation of that name, as Keras has it.
    pub fn named(name: &str) -> Option<MeshActivation> {
        let all = MeshActivation::ALL.iter();
        all.into_iter()
            .find(|(own, _)| *own == name)
            .map(|(_, found)| *found)
    }

    fn op(self) -> Activation {
        match self {
            MeshActivation::Relu => Activation::LeakyRelu { slope: 0.0 },
            MeshActivation::Elu => Activation::Elu,
            MeshActivation::Gelu => Activation::Gelu,
        }
    }
}

/// brainchop's smallest network.
const USUAL: MeshNet = {
    let mut layers = [(0, 0); MOST];
    let dilations = [1, 2, 4, 8, 16, 8, 4, 2, 1];
    let mut i = 0;
    while i < dilations.len() {
        layers[i] = (5, dilations[i]);
        i += 1;
    }
    MeshNet {
        activation: MeshActivation::Relu,
        layers,
        count: dilations.len(),
    }
};

pub const MESHNET: Network = Network::new(
    "meshnet",
    "MeshNet, as brainchop's: 3³ convolutions of dilations 1 to 16 at full size; meshnet:elu:30x1,30x2 names other layers",
    |b, image, labels| USUAL.build(b, image, labels),
)
.chain(USUAL);

impl MeshNet {
    /// A chain of layers, each with so many channels and that dilation.
    ///
    /// # Errors
    /// Too few or too many layers, channels or voxels of dilation.
    pub fn new(activation: MeshActivation, layers: &[(usize, usize)]) -> Result<MeshNet, String> {
        let mut own = [(0, 0); MOST];
        if layers.is_empty() || layers.len() > MOST {
            let count = layers.len();
            return Err(format!(
                "a meshnet has 1 to {MOST} layers before its last, not {count}"
            ));
        }
        for (own, &(channels, dilation)) in own.iter_mut().zip(layers) {
            if !(1..=1024).contains(&channels) || !(1..=128).contains(&dilation) {
                return Err(format!(
                    "a meshnet's layers have 1 to 1024 channels and dilations from 1 to 128, not {channels}x{dilation}"
                ));
            }
            *own = (channels as u16, dilation as u16);
        }
        Ok(MeshNet {
            activation,
            layers: own,
            count: layers.len(),
        })
    }

    /// What [`std::fmt::Display`] writes.
    ///
    /// # Errors
    /// Anything else, with what is meant.
    pub fn parse(name: &str) -> Result<MeshNet, String> {
        let meant = || {
            format!("`{name}` should be like meshnet:elu:5x1,5x2,5x4 (relu, elu or gelu; CHANNELSxDILATION)")
        };
        let rest = name.strip_prefix("meshnet:").ok_or_else(meant)?;
        let (activation, layers) = rest.split_once(':').ok_or_else(meant)?;
        let activation = MeshActivation::named(activation).ok_or_else(meant)?;
        let layer = |text: &str| {
            let (channels, dilation) = text.split_once('x')?;
            Some((channels.parse().ok()?, dilation.parse().ok()?))
        };
        let layers: Option<Vec<(usize, usize)>> = layers.split(',').map(layer).collect();
        MeshNet::new(activation, &layers.ok_or_else(meant)?)
    }

    /// The network of this chain.
    pub(super) fn network(self) -> Network {
        Network {
            layers: Layers::Chain(self),
            ..MESHNET
        }
    }

    /// Channels and dilation of each layer.
    pub fn layers(&self) -> impl Iterator<Item = (usize, usize)> {
        let layers = self.layers[..self.count].iter();
        layers.map(|(channels, dilation)| (usize::from(*channels), usize::from(*dilation)))
    }

    pub(super) fn build(&self, b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
        let mut x = image;
        for (i, (channels, dilation)) in self.layers().enumerate() {
            let conv = Conv::k3(channels).dilation(dilation);
            x = b.conv(&format!("layers.{i}"), &[x], conv)?;
            x = b.graph.push1(self.activation.op(), &[x])?;
        }
        let last = format!("layers.{}", self.count);
        b.conv(&last, &[x], Conv::k1(labels).with_bias())
    }
}

impl std::fmt::Display for MeshNet {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut names = MeshActivation::ALL.iter();
        let (name, _) = names
            .find(|(_, a)| *a == self.activation)
            .expect("all have names");
        let layers: Vec<String> = self
            .layers()
            .map(|(channels, d)| format!("{channels}x{d}"))
            .collect();
        write!(f, "meshnet:{name}:{}", layers.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "meshnet:elu:5x1,5x2,5x16",
            "meshnet:gelu:30x1",
            "meshnet:relu:1x1,2x128",
        ] {
            assert_eq!(MeshNet::parse(name).unwrap().to_string(), name);
        }
        for name in [
            "meshnet",
            "meshnet:tanh:5x1",
            "meshnet:elu:",
            "meshnet:elu:5",
            "meshnet:elu:0x1",
            "meshnet:elu:5x129",
        ] {
            assert!(MeshNet::parse(name).is_err(), "{name}");
        }
        assert_eq!(USUAL.network().reach(), Some(46));
        assert_eq!(MESHNET.reach(), Some(46));
    }
}
