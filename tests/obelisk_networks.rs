//! The original OBELISK networks: parameters, training and prediction at locations.
mod common;

use obelisk::model;
use obelisk::predict::inference_graph;

#[test]
fn they_have_as_many_parameters_as_their_layers_say() {
    let preprocessing = model::find("obelisk_visceral").unwrap().published.unwrap()();
    for (arch, parameters) in [
        ("obelisk", 131_464),
        ("obelisk_visceral", 131_464),
        ("obelisk-unary", 128_392),
        ("obelisk-random", 125_320),
    ] {
        let network = model::find(arch).unwrap();
        let graph = inference_graph(network, &preprocessing, [31, 24, 40]).unwrap();
        assert_eq!(graph.parameter_count(), parameters, "{arch}");
    }
}
