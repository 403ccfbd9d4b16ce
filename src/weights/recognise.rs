//! Which network a file's tensors are of, by their names and shapes.

use std::collections::{BTreeMap, HashMap};

use super::ModelInfo;
use crate::graph::{Graph, GraphError, Source};
use crate::model::{self, Builder, NETWORKS, Network};
use crate::preprocess::Preprocessing;
use crate::tensor::{Spec, Tensor};

/// Sizes (D, H, W) to build a network at, to see its tensors' shapes: any, and those that published networks are fixed to.
const SIZES: [[usize; 3]; 4] = [[64; 3], [144; 3], [156, 115, 160], [312, 230, 320]];

/// How many names of each kind an error lists.
const LISTED: usize = 3;

type Shapes = BTreeMap<String, Vec<usize>>;

/// The network of these tensors, and how its scans are read: as its authors published it, or as `like` says; `None`
/// where nobody does.
///
/// Without `arch` and `like` every network is tried, at its published number of labels or at that of the tensors.
///
/// # Errors
/// In words for the user: tensors that fit no network, and why not the nearest.
pub(super) fn recognise(
    tensors: &HashMap<String, Tensor>,
    arch: Option<&str>,
    like: Option<&ModelInfo>,
) -> Result<(Network, Option<Preprocessing>), String> {
    let named = arch.or(like.map(|l| l.arch.as_str()));
    let candidates: Vec<Network> = match named {
        Some(name) => vec![model::find(name).map_err(|e| e.to_string())?],
        None => NETWORKS.to_vec(),
    };
    let mut fits = Vec::new();
    for network in candidates {
        let preprocessing = match like {
            Some(like) => Some(like.preprocessing.clone()),
            None => network.published.map(|published| published()),
        };
        let graph = match &preprocessing {
            Some(preprocessing) => graph_for(&network, preprocessing),
            None => graph_of_any_size(&network, 1, labels_of(&network, tensors)),
        };
        match graph {
            Ok(graph) => fits.push((Differences::new(&shapes(&graph), tensors), network, preprocessing)),
            Err(error) if named.is_some() => return Err(error.to_string()),
            // It takes one size or number of labels only, and these are others.
            Err(_) => {}
        }
    }
    // The first of equals, and a published network before one that has the same tensors and none.
    fits.sort_by_key(|(differences, _, preprocessing)| (differences.count(), preprocessing.is_none()));
    let (differences, network, preprocessing) = fits.into_iter().next().ok_or("no network can be built")?;
    if differences.count() > 0 {
        let nearest = match named {
            Some(_) => format!("its tensors are not those of {}", network.name),
            None => format!("no network has its tensors; the nearest is {}", network.name),
        };
        return Err(format!("{nearest}: {differences}"));
    }
    Ok((network, preprocessing))
}

/// That the tensors are those of the network of that name.
pub(super) fn check(
    arch: &str,
    preprocessing: &Preprocessing,
    tensors: &HashMap<String, Tensor>,
) -> Result<(), String> {
    let network = &model::find(arch).map_err(|e| e.to_string())?;
    let graph = graph_for(network, preprocessing).map_err(|e| e.to_string())?;
    let differences = Differences::new(&shapes(&graph), tensors);
    match differences.count() {
        0 => Ok(()),
        _ => Err(format!("its tensors are not those of {arch}: {differences}")),
    }
}

/// The network for these channels, labels and grid; where there is no grid, at the first of [`SIZES`] that it takes.
pub(super) fn graph_for(network: &Network, preprocessing: &Preprocessing) -> Result<Graph, GraphError> {
    let (channels, labels) = (preprocessing.channels.len(), preprocessing.labels.len());
    match preprocessing.grid {
        Some(size) => graph_at(network, channels, labels, size),
        None => graph_of_any_size(network, channels, labels),
    }
}

fn graph_of_any_size(network: &Network, channels: usize, labels: usize) -> Result<Graph, GraphError> {
    let [first, others @ ..] = SIZES;
    others
        .iter()
        .fold(graph_at(network, channels, labels, first), |graph, size| {
            graph.or_else(|_| graph_at(network, channels, labels, *size))
        })
}

fn graph_at(
    network: &Network,
    channels: usize,
    labels: usize,
    [d, h, w]: [usize; 3],
) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let image = graph.input("image", Spec::flat(&[1, channels, d, h, w]))?;
    let mut builder = Builder::new(&mut graph, false);
    network.build(&mut builder, image, labels)?;
    Ok(graph)
}

/// Shapes of a graph's parameters and states by name.
fn shapes(graph: &Graph) -> Shapes {
    let kept = |source| matches!(source, Source::Parameter(_) | Source::State(_));
    let tensors = graph.values().iter().filter(|v| kept(v.source));
    tensors.map(|v| (v.name.clone(), v.spec.shape.clone())).collect()
}

/// The number of labels of a network's tensors: the size of an axis that follows the number of labels. 2 where there is
/// none.
fn labels_of(network: &Network, tensors: &HashMap<String, Tensor>) -> usize {
    let [Ok(few), Ok(more)] = [2, 3].map(|labels| graph_of_any_size(network, 1, labels)) else {
        return 2;
    };
    let (few, more) = (shapes(&few), shapes(&more));
    few.iter()
        .filter_map(|(name, shape)| Some((shape, more.get(name)?, tensors.get(name)?)))
        .find_map(|(few, more, tensor)| {
            let axis = few.iter().zip(more).position(|(a, b)| (*a, *b) == (2, 3))?;
            tensor.shape.get(axis).copied()
        })
        .filter(|labels| (1..=MOST_LABELS).contains(labels))
        .unwrap_or(2)
}

/// More labels than any segmentation has: a limit on what a file may make this program build.
const MOST_LABELS: usize = 1024;

/// How tensors differ from those of a network.
struct Differences {
    missing: Vec<String>,
    surplus: Vec<String>,
    shapes: Vec<String>,
}

impl Differences {
    fn new(needed: &Shapes, tensors: &HashMap<String, Tensor>) -> Self {
        let missing = needed.keys().filter(|name| !tensors.contains_key(*name));
        let mut surplus: Vec<String> = tensors
            .keys()
            .filter(|name| !needed.contains_key(*name))
            .map(|name| format!("`{name}`"))
            .collect();
        surplus.sort();
        let shapes = needed.iter().filter_map(|(name, shape)| {
            let found = &tensors.get(name)?.shape;
            (found != shape).then(|| format!("`{name}` is {found:?} instead of {shape:?}"))
        });
        Differences {
            missing: missing.map(|name| format!("`{name}`")).collect(),
            shapes: shapes.collect(),
            surplus,
        }
    }

    fn count(&self) -> usize {
        self.missing.len() + self.surplus.len() + self.shapes.len()
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        for (what, items) in [
            ("missing: ", &self.missing),
            ("surplus: ", &self.surplus),
            ("", &self.shapes),
        ] {
            let more = match items.len().saturating_sub(LISTED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            if !items.is_empty() {
                let listed = items[..items.len().min(LISTED)].join(", ");
                parts.push(format!("{what}{listed}{more}"));
            }
        }
        f.write_str(&parts.join("; "))
    }
}
