//! Networks: functions that add nodes. A network is a file in `model/` and its line in [`NETWORKS`].

mod builder;
mod global_fc;
mod hybrid;
mod network;
mod obelisk;
pub mod published;
mod summary;
mod unet;

use crate::graph::GraphError;

pub use builder::{Builder, Conv};
pub use network::{At, Build, Fixed, Network, PointNetwork, Site};
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
    global_fc::UNET_GLOBAL_FC,
    unet::ALLCONVUNET_TCIA,
    unet::ALLCONVUNET_VISCERAL,
    global_fc::GLOBALFCNET_TCIA,
    global_fc::GLOBALFCNET_VISCERAL,
];

/// The network where none is named.
pub const DEFAULT: &str = hybrid::OBELISK_HYBRID.name;

/// The network of that name, or the names there are.
pub fn find(name: &str) -> Result<&'static Network, GraphError> {
    NETWORKS.iter().find(|n| n.name == name).ok_or_else(|| {
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
