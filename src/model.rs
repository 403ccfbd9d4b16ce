//! Networks: functions that add nodes. A network is a file in `model/` and its line in [`NETWORKS`].

mod builder;
mod global_fc;
mod hybrid;
mod meshnet;
mod network;
mod nnunet;
mod obelisk;
pub mod published;
mod summary;
mod unet;

use crate::graph::GraphError;

pub use builder::{Builder, Conv};
pub use meshnet::{MeshActivation, MeshNet};
pub use network::{At, Build, Fixed, Layers, Network, PointNetwork, Site};
pub use nnunet::{Architecture, Class, Stages};
pub use summary::{Layer, PlannedMemory, Summary};

/// Every network that `--arch` names.
pub const NETWORKS: &[Network] = &[
    obelisk::OBELISK,
    obelisk::OBELISK_UNARY,
    obelisk::OBELISK_RANDOM,
    obelisk::OBELISK_VISCERAL,
    hybrid::OBELISK_HYBRID,
    hybrid::OBELISKHYBRID_TCIA,
    hybrid::OBELISKHYBRID_VISCERAL,
    unet::UNET,
    unet::UNET_LEAN,
    meshnet::MESHNET,
    nnunet::NNUNET,
    nnunet::NNUNET_RESENC,
    global_fc::UNET_GLOBAL_FC,
    unet::ALLCONVUNET_TCIA,
    unet::ALLCONVUNET_VISCERAL,
    global_fc::GLOBALFCNET_TCIA,
    global_fc::GLOBALFCNET_VISCERAL,
];

/// The network where none is named.
pub const DEFAULT: &str = hybrid::OBELISK_HYBRID.name;

/// The network of that name, or the names there are. A name with parameters, such as `meshnet:elu:5x1,5x2`, is that of a
/// network made of them.
pub fn find(name: &str) -> Result<Network, GraphError> {
    if name.starts_with("meshnet:") {
        return Ok(MeshNet::parse(name).map_err(GraphError::Name)?.network());
    }
    if name.starts_with("nnunet:") || name.starts_with("nnunet-resenc:") {
        return Ok(Network::nnunet(
            Architecture::parse(name).map_err(GraphError::Name)?,
        ));
    }
    NETWORKS.iter().find(|n| n.name == name).copied().ok_or_else(|| {
        let names: Vec<&str> = NETWORKS.iter().map(|n| n.name).collect();
        GraphError::Name(format!(
            "there is no network `{name}`; choose one of {}",
            names.join(", ")
        ))
    })
}

/// Names of the networks that train and predict at any locations.
pub fn point_networks() -> Vec<&'static str> {
    let points = NETWORKS.iter().filter(|n| n.points.is_some());
    points.map(|n| n.name).collect()
}

/// `ceil(n / by)` on every axis.
fn shrink(size: [usize; 3], by: usize) -> [usize; 3] {
    size.map(|n| n.div_ceil(by))
}
